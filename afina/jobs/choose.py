"""`choose`: which base for these data on this machine: candidates, tried on your own rows, ranked."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

from afina.core.config import Result, Settings, Words, changed, section, setting
from afina.core.device import cache_folder
from afina.core.errors import InputError, RunFailed, SettingsError, counted
from afina.core.events import Listener, Notice, ignore
from afina.core.files import check_writable_folder, write_json
from afina.core.job import Job
from afina.data.layouts import Kind
from afina.data.quality.signals import language
from afina.data.splits import Splits, character_counts, read_splits
from afina.forecast.estimate import forecast_training
from afina.forecast.expected import expected_workload
from afina.forecast.machines import this_machine
from afina.measure.metrics import main_metric
from afina.models.skeleton import read_skeleton
from afina.models.sources.catalogue import Entry, known_models, select
from afina.models.sources.source import is_local
from afina.runs.worker import run_in_process
from afina.search.base_trial import BaseTrial
from afina.search.candidates import Candidate, Choice
from afina.search.files import Share, kept
from afina.search.resumable import resumable_folder, with_test_split
from afina.settings import RunSettings

# The catalogue's word for each kind of data.
_TASKS: dict[Kind, str] = {
    "classification": "classification",
    "structured": "structured output",
    "translation": "translation",
    "summarisation": "summarisation",
    "chat": "response generation",
    "generation": "text generation",
    "text": "text generation",
}
_READ = 2_000  # examples whose language is looked at
_SPOKEN = 0.1  # of the texts: a base need not know a rarer language
_LONGEST = 2 * 3600.0  # seconds of training: slower bases are left out
_LISTED, _FETCHED = 10, 4  # bases of the catalogue that are listed, and that --download fetches, at most
_TRAINING = 0.6  # of the minutes; the rest is for loading and answers
_SHARES = 0.03, 0.5  # of a full training, at least and at most


class ChooseSettings(Settings):
    minutes: float = setting(30.0, metavar="M", gt=0)
    """About this many for trying bases, in all."""
    bases: Words | None = setting(None, metavar="LIST")
    """Try these, with commas between: names, hub ids (fetched where they are not here), folders; by default the
    catalogue's.
    """
    licence: str | None = setting(None, "--license", metavar="WHICH")
    """`commercial`: only bases that may be used so."""
    download: bool = False
    """Also fetch and try the four most promising that are not on this disk."""
    run: RunSettings = section(
        without=(
            "base",
            "revision",
            "task",
            "method",
            "last_layers",
            "adapter",
            "force",
            "overwrite",
            "export",
            "quantize",
            "template",
            "track",
            "allow_swap",
        )
    )


class CandidateFacts(Result):
    """A base that could be adapted here, and what was seen where it was tried."""

    base: str
    parameters: int
    licence: str | None
    here: bool
    """Whether its files are on this disk."""
    memory_gb: float
    seconds: float
    """Of a full training."""
    reasons: tuple[str, ...]
    unknown_languages: tuple[str, ...]
    """Languages of the data that the catalogue does not name for it."""
    probe: BaseTrial | None
    failed: str | None


class ChooseResult(Result):
    task: str
    metric: str
    """What the scores of `tried` are of."""
    languages: tuple[str, ...]
    share: float
    """Of a full training, after which the bases are compared."""
    guess: float | None
    """Bits per answer of guessing by how often each class occurs; None where there are no two classes."""
    best: str | None
    revision: str | None
    lead: dict[str, Any] | None
    """The second's bits per answer less the best's, on the same held-out rows."""
    tried: tuple[CandidateFacts, ...]
    """The best first."""
    others: tuple[CandidateFacts, ...]
    """Bases of the catalogue that were not tried."""
    classes: tuple[float, ...] = Field(exclude=True)
    """Shares of the classes among the answers, where answers name one."""
    beats_guessing: bool = Field(exclude=True)
    """Whether the best's bits are fewer than those of guessing, by more than chance."""
    folder: Path = Field(exclude=True)


def choose(settings: ChooseSettings, listener: Listener = ignore) -> ChooseResult:
    """Ranks bases for the data of `run`: `bases` by name, or those of the catalogue.

    Those on this disk (with `download`, the first few others too) are adapted for about `minutes` in all. The order
    is that of what the right answers of held-out rows cost each after the same share of its own whole training, in
    bits per answer. Raises `InputError`; `Interrupted` after Ctrl-C: what was finished is kept in `run.out`.
    """
    choice = _choose(settings, listener)
    return ChooseResult(
        **choice.json(), classes=choice.classes, beats_guessing=choice.beats_guessing, folder=choice.folder
    )


def _choose(asked: ChooseSettings, listener: Listener) -> Choice:
    settings, bases = asked.run, asked.bases
    if asked.licence not in (None, "commercial"):
        raise SettingsError(f"--license {asked.licence!r} is unknown", "it takes `commercial`")
    if bases is not None and not bases:
        raise SettingsError("--bases names no base", "give names with commas between, or leave it out")
    out = settings.out or Path("runs") / f"{settings.data.name}-choose"
    check_writable_folder(out)
    finder = _Finder(settings, listener)
    found = finder.named(bases) if bases else finder.of_catalogue(asked.licence)
    wanted = _to_try(found, bases is not None, asked.download, listener)
    full = sum(each.forecast.seconds for each in wanted)
    names = [each.name for each in wanted]
    plain = changed(finder.settings, {"base": "starter"})
    with resumable_folder(out, "choose", asked, plain, {"bases": names, "minutes": asked.minutes}):
        share = _share(
            out / "share.json", min(_SHARES[1], max(_SHARES[0], 60 * asked.minutes * _TRAINING / full)), listener
        )
        listener(
            Notice(
                f"{counted(len(names), 'base is')} tried, each on {share:.0%} of a full training: {', '.join(names)}"
            )
        )
        tried = [_tried(each, finder.settings, share, out, listener) for each in wanted]
        tried.sort(key=lambda each: each.trial.bits_after if each.trial else math.inf)
        if not tried[0].trial:
            raise RunFailed(f"no base could be tried: {tried[0].failed}")
        others = [each for each in found if each.name not in names][:_LISTED]
        metric = main_metric(finder.kind).name
        choice = Choice(finder.task, metric, finder.languages, share, tried, others, out, finder.classes)
        write_json(out / "choice.json", choice.json())
    return choice


class _Finder:
    """Finds bases for the data of `settings`: their task, kind and languages, and what this machine can train."""

    def __init__(self, settings: RunSettings, listener: Listener) -> None:
        self._listener, self._cache = listener, cache_folder(settings.cache_dir)
        self._splits = splits = read_splits(settings.data, settings.data_seed).resolved()
        self.kind: Kind = splits.settings.kind or "generation"
        self.task, self.languages = _TASKS[self.kind], _languages(splits)
        spoken = f" in {', '.join(self.languages)}" if self.languages else ""
        listener(Notice(f"the task looks like {self.task}{spoken}"))
        shares = tuple(splits.answers.shares)
        self.classes = shares if self.kind == "classification" else ()
        if len(self.classes) == 1:
            listener(
                Notice("every answer is the same: there is nothing to learn, and nothing to choose by", warning=True)
            )
        self._machine = this_machine(self._cache, settings.device, settings.precision, listener=listener)
        self._texts = character_counts(splits)
        self.settings = with_test_split(settings)

    def named(self, bases: Sequence[str]) -> list[Candidate]:
        """Those that a user named."""
        return [self._candidate(name, ("you named it",)) for name in dict.fromkeys(bases)]

    def of_catalogue(self, licence: str | None) -> list[Candidate]:
        """Those of the catalogue that can do the task, know its languages, fit, and train in two hours.

        Those that are recommended for the task come first, then the larger ones.
        """
        found: list[tuple[Entry, Candidate]] = []
        for entry in select(known_models().values(), self.task, commercial=licence == "commercial"):
            known = all(code in entry.languages for code in self.languages)
            too_large = 2 * entry.parameters > self._machine.available
            if too_large or not (known or is_local(entry.name, self._cache)):
                continue
            reasons = [f"recommended for {self.task}: {claim.claim}" for claim in entry.praised(self.task)[:1]]
            reasons += [f"knows {', '.join(self.languages)}"] if known and self.languages else []
            try:
                candidate = self._candidate(entry.name, tuple(reasons))
            except InputError:  # of an architecture that is not supported, or with a head that does not suit the task
                continue
            if candidate.forecast.fits and candidate.forecast.seconds <= _LONGEST:
                found.append((entry, candidate))
        found.sort(key=lambda pair: (not pair[0].praised(self.task), -pair[0].parameters))
        return [candidate for _, candidate in found]

    def _candidate(self, name: str, reasons: tuple[str, ...]) -> Candidate:
        """Raises `InputError` where the base cannot do the task."""
        base = read_skeleton(name, cache_dir=self._cache, classes=self._splits.answers.classes)
        if base.task.kind not in (None, self.kind):
            raise SettingsError(f"{name} names classes only, and the answers here are none", "leave it out of --bases")
        entry = known_models().get(name)
        own = changed(self.settings, {"base": name, "data": self._splits.settings.model_dump()})
        workload = expected_workload(base, own, self._splits, self._listener, self._texts)
        return Candidate(
            name=name,
            parameters=base.parameters,
            licence=entry.licence if entry else None,
            is_here=base.is_local,
            forecast=forecast_training(base, own, workload, self._machine),
            reasons=reasons,
            unknown=tuple(code for code in self.languages if entry and code not in entry.languages),
        )


def _to_try(found: list[Candidate], named: bool, download: bool, listener: Listener) -> list[Candidate]:
    """Those `named` that fit; else those on this disk, with `download` a few others too. Raises `SettingsError`."""
    if named:
        wanted = [each for each in found if each.forecast.fits]
        for each in found:
            if not each.forecast.fits:
                listener(Notice(f"{each.name} does not fit into memory here: not tried", warning=True))
    else:
        wanted = [each for each in found if each.is_here]
        wanted += [each for each in found if not each.is_here][:_FETCHED] if download else []
    if not wanted:
        raise SettingsError(
            "no base that fits is on this disk"
            + (f"; of the catalogue {', '.join(e.name for e in found[:3])} would" if found else ""),
            "`afina models pull NAME`, or --download, fetches one; --bases names your own",
        )
    return wanted


def _share(file: Path, new: float, listener: Listener) -> float:
    """The share of a full training that each base gets: the one that the trials began with, even if the machine's
    speed is another by now.
    """
    found = kept(Share.read, file, listener)
    if found is None:
        write_json(file, {"share": new})
    return found.share if found else new


def _languages(splits: Splits) -> tuple[str, ...]:
    """The languages of prompts and answers, the most frequent first."""
    found: Counter[str] = Counter()
    for example in islice(splits.training_examples(), _READ):
        found.update(filter(None, (language(example.source), language(example.completion or ""))))
    total = sum(found.values())
    return tuple(code for code, n in found.most_common() if n >= _SPOKEN * total)


def _tried(each: Candidate, settings: RunSettings, share: float, out: Path, listener: Listener) -> Candidate:
    """The candidate with its trial, run now or before."""
    listener(Notice(f"— {each.name} —"))
    file = out / f"{each.name.strip('/').replace('/', '--')}.json"
    own = changed(settings, {"base": each.name})
    try:
        trial = kept(BaseTrial.read, file, listener)
        if trial is None:
            arguments = {"settings": own.model_dump(mode="json"), "file": str(file), "share": share}
            run_in_process("base", arguments, listener)
            trial = BaseTrial.read(file)
        return replace(each, trial=trial)
    except (RunFailed, InputError) as error:
        listener(Notice(f"{each.name} failed: {error}", warning=True))
        return replace(each, failed=str(error))


JOB = Job.of(choose)
