"""Flags, positionals and help of a command, from the settings of its jobs; and the settings that were typed."""

import argparse
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from afina.core.config import FieldInfo, Settings, build, fields, file_section, overridden, read_yaml
from afina.core.errors import SettingsError
from afina.core.job import Job
from afina.core.limits.yaml_text import parse_yaml
from afina.core.text import lowered

_CONFIG, _JSON = "--config", "--json"
_WORDS = "words"


class Command:
    """The jobs under one word: `NAME`, `NAME ACTION`, and `NAME --flag`, which replaces `NAME` where the flag is given.

    `with_json` are the jobs that have --json.
    """

    def __init__(self, name: str, jobs: Iterable[Job], with_json: Sequence[str]) -> None:
        self.name = name
        self.jobs = {job.name: job for job in jobs}
        self.fields = {job.name: list(fields(job.settings)) for job in self.jobs.values()}
        self.actions = [job.split()[1] for job in self.jobs if " " in job and "--" not in job]
        self.with_json = with_json
        self.flags: dict[str, dict[str, FieldInfo]] = {}  # by their names; the settings that they are, by job
        for job, own in self.fields.items():
            for info in own:
                if info.flags:
                    self.flags.setdefault(info.flags[-1], {})[job] = info
        self.with_file = [job.name for job in self.jobs.values() if file_section(job.settings) is not None]

    def declare(self, parser: argparse.ArgumentParser, typed: Sequence[str]) -> None:
        """Adds the command to its parser. Help on one action (among the words `typed`) is about its flags alone."""
        action = typed[0] if typed and typed[0] in self.actions and {"-h", "--help"} & {*typed} else None
        shown = [job for job in self.jobs if action is None or job == f"{self.name} {action}"]
        parser.usage = "\n       ".join(self._usage(job) for job in shown)
        if action:
            parser.description = self.jobs[shown[0]].help
        if self.actions:
            lines = {each: self.jobs[f"{self.name} {each}"].help for each in self.actions}
            width = max(map(len, lines))
            parser.add_argument("action", metavar="ACTION", choices=self.actions, help="what to do, see below")
            parser.epilog = "actions:\n" + "\n".join(f"  {each:{width}}  {help}" for each, help in lines.items())
        self._positionals(parser, shown)
        if any(job in self.with_json for job in shown):
            parser.add_argument(_JSON, dest=_JSON, action="store_true", help="print one JSON object")
        if any(job in self.with_file for job in shown):
            parser.add_argument(
                _CONFIG, dest=_CONFIG, type=Path, metavar="FILE", help="YAML file of settings; flags override it"
            )
        groups: dict[str, Any] = {"": parser}
        for name, every in self.flags.items():
            infos = {job: info for job, info in every.items() if job in shown}
            for group in {info.group for info in list(infos.values())[:1]}:
                if group not in groups:
                    groups[group] = parser.add_argument_group(group)
                self._add(groups[group], name, infos)

    def _usage(self, job: str) -> str:
        own = self.fields[job]
        words = [_shown(info) for info in own if info.positional]
        needed = [f"{info.flags[-1]} {info.metavar}" for info in own if info.flags and info.required]
        chosen_by = [word for word in job.split()[1:] if word.startswith("--")]
        needed = [each for each in needed if each.split()[0] not in chosen_by]
        first = [self.flags[flag][job].metavar for flag in chosen_by]
        return " ".join(["afina", job, *first, *words, *needed, "[flags]"])

    def _positionals(self, parser: argparse.ArgumentParser, shown: Sequence[str]) -> None:
        if self.actions:
            pairs = [(job, info) for job in shown for info in self.fields[job] if info.positional]
            metavar = "|".join(dict.fromkeys(info.positional for _, info in pairs))
            parser.add_argument(
                _WORDS, nargs="*", default=[], metavar=metavar, help=self._help_of(pairs, len(shown) > 1)
            )
            return
        first: dict[str, FieldInfo] = {}
        for job in shown:
            first = {info.positional: info for info in self.fields[job] if info.positional} | first
        for name, info in first.items():
            needed = info.required and all(
                job not in self.with_file
                and any(each.positional == name and each.required for each in self.fields[job])
                for job in self.jobs
            )
            nargs = "*" if info.many else None if needed else "?"
            parser.add_argument(
                name, nargs=nargs, metavar=name, default=argparse.SUPPRESS, help=self._help_of([("", info)], False)
            )

    def _add(self, group: Any, name: str, infos: dict[str, FieldInfo]) -> None:
        info = next(iter(infos.values()))
        options: dict[str, Any] = {"action": "store_true"} if info.switch else {"metavar": info.metavar}
        if info.repeated:
            options["action"] = "append"
        help = self._help_of(infos.items(), bool(self.actions) and len(self.jobs) > 1)
        group.add_argument(*reversed(info.flags), dest=name, default=argparse.SUPPRESS, help=help, **options)

    def _help_of(self, infos: Iterable[tuple[str, FieldInfo]], by_action: bool) -> str:
        """Help on a flag or positional, as argparse takes it; where actions differ in it, each after its name."""
        texts: dict[str, list[str]] = {}
        for job, info in infos:
            texts.setdefault(_help(info), []).append(job.rpartition(" ")[2])
        each = "; ".join(f"{', '.join(dict.fromkeys(jobs))}: {lowered(text)}" for text, jobs in texts.items())
        return (each if by_action else "; ".join(texts)).replace("%", "%%")

    def take(self, options: argparse.Namespace, unknown: Sequence[str]) -> Sequence[str]:
        """Gives the `unknown` words, which argparse leaves behind after a flag, to positionals; returns the others."""
        if any(word.startswith("-") and word != "-" for word in unknown):
            return unknown
        if self.actions:
            setattr(options, _WORDS, [*getattr(options, _WORDS), *unknown])
            return []
        names = dict.fromkeys(info.positional for info in self._infos() if info.positional)
        empty = [name for name in names if getattr(options, name, None) in (None, [])]
        for name, word in zip(empty, unknown, strict=False):
            setattr(options, name, [word] if any(i.many and i.positional == name for i in self._infos()) else word)
        return unknown[len(empty) :]

    def _infos(self) -> Iterable[FieldInfo]:
        return (info for infos in self.fields.values() for info in infos)

    def read(self, options: argparse.Namespace) -> tuple[Job, Settings]:
        """The job that was asked for, and its settings. Raises `SettingsError`."""
        given = {name: value for name, value in vars(options).items() if name in self.flags}
        job = self._job(options, given)
        values: dict[str, Any] = {}
        for name, value in given.items():
            info = self.flags[name].get(job.name)
            if info is None:
                raise self._unread(job.name, name, list(self.flags[name]))
            values[info.path] = _parsed(value, info)
        for name, readers in ((_JSON, self.with_json), (_CONFIG, self.with_file)):
            if vars(options).get(name) and job.name not in readers:
                raise self._unread(job.name, name, readers)
        values |= self._words(job.name, options)
        file: dict[str, Any] = {}
        if path := vars(options).get(_CONFIG):
            section = file_section(job.settings)
            file = {section: read_yaml(path)} if section else read_yaml(path)
        return job, build(job.settings, overridden(job.settings, file, values))

    def _job(self, options: argparse.Namespace, given: dict[str, Any]) -> Job:
        if self.actions:
            return self.jobs[f"{self.name} {options.action}"]
        return next((job for name, job in self.jobs.items() if name.split()[-1] in given), self.jobs[self.name])

    def _unread(self, job: str, flag: str, readers: Sequence[str]) -> SettingsError:
        known = ", ".join(f"`afina {each}`" for each in readers)
        return SettingsError(f"afina {job} does not read {flag}", f"leave it out: it is a setting of {known}")

    def _words(self, job: str, options: argparse.Namespace) -> dict[str, Any]:
        """The positionals, by the paths of their settings."""
        own = [info for info in self.fields[job] if info.positional]
        if not self.actions:
            given = vars(options)
            every = {info.positional for info in self._infos() if info.positional}
            for name in every - {info.positional for info in own}:
                if given.get(name) is not None:
                    readers = [each for each, infos in self.fields.items() if any(i.positional == name for i in infos)]
                    raise self._unread(job, name, readers)
            return {i.path: given[i.positional] for i in own if given.get(i.positional) not in (None, [])}
        words = getattr(options, _WORDS)
        least = sum(info.least if info.many else info.required for info in own)
        most = None if any(info.many for info in own) else len(own)
        if len(words) < least or (most is not None and len(words) > most):
            count = f"{least}" if most == least else f"{least} or more" if most is None else f"up to {most}"
            names = " or ".join(dict.fromkeys(info.positional for info in own)) or "word"
            raise SettingsError(
                f"afina {job} takes {count} {names}, {len(words)} given", f"`afina {job} --help` shows which"
            )
        found = {info.path: words[i] for i, info in enumerate(own) if not info.many and i < len(words)}
        return found | {info.path: words[i:] for i, info in enumerate(own) if info.many}


def _shown(info: FieldInfo) -> str:
    """A positional as the usage line shows it."""
    name = f"{info.positional}..." if info.many else info.positional
    return name if info.required else f"[{name}]"


def _help(info: FieldInfo) -> str:
    """Meaning, choices and default of a setting."""
    value = ",".join(map(str, info.default)) if isinstance(info.default, tuple) else str(info.default)
    default = "" if info.default in (None, (), {}) or info.switch or info.positional else f" [{value}]"
    choices = f" One of {', '.join(info.choices)}." if info.choices else ""
    text = f"{info.help}{choices}"
    return f"{text.removesuffix('.') if text.count('. ') == 0 else text}{default}"


def _parsed(value: Any, info: FieldInfo) -> Any:
    if not isinstance(value, str) or info.text:
        return value
    with suppress(ValueError):  # the settings then say what is wrong with the text
        return parse_yaml(value)
    return value
