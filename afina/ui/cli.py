"""The command line: finds the job, reads its settings, runs it, shows the result.

Results go to standard output, everything else to standard error.
"""

import argparse
import importlib
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Any, NoReturn

from afina.core.errors import AfinaError, Interrupted, SettingsError, Unmapped, near, writing
from afina.core.job import Job, Jobs
from afina.core.process.standard import discard, open_standard_files
from afina.core.text import shown_streams
from afina.jobs import JOBS
from afina.version import __version__

if TYPE_CHECKING:
    from afina.core.config import Settings
    from afina.core.events import Listener
    from afina.ui.common import View
    from afina.ui.flags import Command

_TABLES = (JOBS, Jobs("afina.ui.studio"))  # what is asked for, and what asks for it in another way
_EPILOG = """\
first run:
  afina train examples.csv --prompt '{question}' --completion '{answer}' --out runs/first
  afina generate runs/first 'a question' --base-too

help on a command: afina COMMAND --help"""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal, but no wider than 120 columns."""

    def __init__(self, prog: str, **more: Any) -> None:
        super().__init__(prog, width=min(120, shutil.get_terminal_size().columns) - 2, **more)


_YES_OR_NO = ("true", "false", "yes", "no", "on", "off", "0", "1")


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are ours: one message, with names that look like the wrong one."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Raises `SettingsError` where a switch gets a value, which argparse would take for something else."""
        words = sys.argv[1:] if args is None else list(args)
        switches = {flag for each in self._actions if each.nargs == 0 for flag in each.option_strings}
        for word, after in pairwise([*takewhile(lambda word: word != "--", words), ""]):
            flag, equals, _ = word.partition("=")
            # What follows --json and its like may be a text of its own.
            if flag in switches and (equals or ("." in flag and after.lower() in _YES_OR_NO)):
                raise SettingsError(
                    f"{word if equals else f'{flag} {after}'}: it is a switch, which takes no value",
                    f"give {flag} alone, or leave it out",
                )
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        if message.startswith("the following arguments are required: ACTION"):
            (choices,) = [action.choices for action in self._actions if action.metavar == "ACTION"]
            one = f"give one of {', '.join(choices or ())}; `{self.prog} --help` says what each does"
            raise SettingsError(f"{self.prog} needs an action", one)
        flags = [flag for action in self._actions for flag in action.option_strings]
        unknown = [word for word in message.split() if word.startswith("--") and word not in flags]
        names = {flag.lstrip("-"): flag for flag in flags}  # dashes alone make no flag resemble another
        close = [near(word.lstrip("-"), list(names)) for word in unknown if message.startswith("unrecognized")]
        hint = re.sub("'([^']+)'", lambda name: repr(names[name[1]]), "".join(close))
        raise SettingsError(f"{message}.{hint}", f"`{self.prog} --help` lists what there is")

    def _print_message(self, message: str, file: Any = None) -> None:
        """argparse's own says nothing where help cannot be written."""
        with writing("standard output"):
            (file or sys.stdout).write(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code: 0 done, 2 usage or input, 1 a run that failed or a check that found something,
    130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    open_standard_files()
    with shown_streams(sys.stdout, sys.stderr):
        try:
            try:
                code = _run(arguments)
            except SystemExit:  # of help
                _flush()
                raise
            _flush()
            return code
        except AfinaError as error:
            return _fail(error, "--json" in arguments)
        except BrokenPipeError:  # whoever read our help, or a pipe that was named as a file, has gone
            discard(sys.stdout)
            return 0
        except KeyboardInterrupt:
            return _fail(Interrupted("interrupted"), "--json" in arguments)
        except Exception as error:
            from afina.core.process.crash import explained

            return _fail(explained(error), "--json" in arguments)


def _flush() -> None:
    """Raises `OutputError`, but not where whoever read us has gone: what was done is done."""
    try:
        with writing("standard output"):
            sys.stdout.flush()
    except BrokenPipeError:
        discard(sys.stdout)


def _fail(error: AfinaError, as_json: bool) -> int:
    """Tells the error on standard error, and as an object on standard output too where one is expected there."""
    try:
        if as_json:
            _print_json(error.json())
        sys.stdout.flush()
    except OSError:
        discard(sys.stdout)
    with suppress(OSError):  # a full disk behind standard error must not change the exit code
        print(f"afina: {error}", file=sys.stderr)
    return error.exit_code


def _print_json(value: Any) -> None:
    from afina.core.text import json_text

    print(json_text(value, sys.stdout.encoding))


def _run(arguments: list[str]) -> int:
    parser = Parser(
        prog="afina",
        description="Adapt a language model to your task with LoRA, and see whether it got better.",
        epilog=_EPILOG,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"afina {__version__}")
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for word in sorted({name.split()[0] for jobs in _TABLES for name in jobs.names()}):
        summary = "".join(jobs.help(word) for jobs in _TABLES)
        parsers.add_parser(word, help=summary, description=summary, allow_abbrev=False, formatter_class=_Help)
    if not arguments:
        parser.print_help()
        return 0
    chosen = parsers.choices.get(arguments[0])
    command, views = _command(arguments[0]) if chosen else (None, {})
    if chosen and command:
        command.declare(chosen, arguments[1:])
    options, unknown = parser.parse_known_args(arguments)
    assert command is not None  # any other word is refused by the parser
    left = command.take(options, unknown)
    if left:
        parsers.choices[options.command].error(f"unrecognized arguments: {' '.join(left)}")
    job, settings = command.read(options)
    return _show(job, settings, views.get(job.name), arguments)


def _command(word: str) -> "tuple[Command, dict[str, View]]":
    """The jobs under a word, and how their results are shown."""
    from afina.ui.flags import Command

    name = f"afina.ui.commands.{word}"
    views: dict[str, View] = importlib.import_module(name).VIEWS if importlib.util.find_spec(name) else {}
    jobs = [listed.load() for table in _TABLES for listed in table if listed.name.split()[0] == word]
    with_json = [job.name for job in jobs if job.name not in views or views[job.name].json]
    return Command(word, jobs, with_json), views


def _show(job: Job, settings: "Settings", view: "View | None", arguments: Sequence[str]) -> int:
    from afina.core.config import json_object
    from afina.core.process.interrupt import interrupt_on_all_signals

    interrupt_on_all_signals()
    as_json = "--json" in arguments
    try:
        result = _done(job, settings)
    except Unmapped as error:
        from afina.ui.offer import agreed

        settings = agreed(error, settings, arguments, as_json)
        result = _done(job, settings)
    try:
        with writing("standard output"):
            if as_json or view is None:
                _print_json(json_object(result))
            else:
                view.show(settings, result)
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read us has gone; what was found stands
        discard(sys.stdout)
    return view.exit_code(result) if view else 0


def _done(job: Job, settings: "Settings") -> Any:
    from afina.ui.progress import Display

    with Display() as display:
        _check_places(settings, display)
        return job.function(settings, display)


def _check_places(settings: Any, listener: "Listener") -> None:
    """Says where nothing can be kept for the next run. Raises `SettingsError` where there is no current folder."""
    from afina.core.process.homes import cache_home

    try:
        os.getcwd()
    except OSError as error:
        raise SettingsError("the current folder is not there any more", "change to another one") from error
    cache_home()  # libraries are told before they look for a home
    places: tuple[Any, ...] = (settings, getattr(settings, "run", None))
    for each in places:
        if hasattr(each, "cache_dir"):
            from afina.core.device import cache_folder, unkept
            from afina.core.events import Notice

            why = unkept(cache_folder(each.cache_dir))
            if why:
                listener(Notice(why, warning=True))


if __name__ == "__main__":
    sys.exit(main())
