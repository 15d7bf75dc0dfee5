"""`choose`: which base for these data on this machine: candidates, tried on your own rows, ranked."""

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

from afina.core.config import Result, Settings, Words, changed, section, setting
from afina.core.device import cache_folder
from afina.core.errors import InputError, RunFailed, SettingsError
from afina.core.events import Listener, Notice, ignore
from afina.core.files import read_json, write_json
from afina.core.job import Job
from afina.data.layouts import Kind
from afina.data.quality.signals import language
from afina.data.splits import Splits, character_counts, read_splits
from afina.forecast.estimate import Forecast, forecast_training
from afina.forecast.machines import this_machine
from afina.jobs.compare import begun, with_rows_apart
from afina.jobs.fit import workload_for
from afina.measure.evaluation import difference_json
from afina.measure.intervals import Difference, paired_difference
from afina.measure.metric import mean
from afina.measure.metrics import main_metric
from afina.models.skeleton import Skeleton, read_skeleton
from afina.models.sources.catalogue import Entry, known_models, select
from afina.models.sources.source import is_local
from afina.runs.worker import run_in_process
from afina.search.base_trial import BaseTrial
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
_READ = 2_000  # examples by which the languages are told
_SPOKEN = 0.1  # of the texts: a language of less is not asked of a base
_LONGEST = 2 * 3600.0  # seconds of training, beyond which a base is none for this machine
_LISTED, _FETCHED = 10, 4  # bases of the catalogue that are named, and that are fetched where that is allowed
_TRAINING = 0.6  # of the minutes; the rest is for loading and answers
_SHARES = 0.03, 0.5  # of a whole training, at least and at most


@dataclass(frozen=True)
class Candidate:
    """A base that could be adapted here: what training it needs, why it is named, the data's languages that the catalogue does not name for
    it, and what was seen where it was tried."""

    name: str
    parameters: int
    licence: str | None
    is_here: bool
    forecast: Forecast
    reasons: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    probe: BaseTrial | None = None
    failed: str | None = None

    def json(self) -> dict[str, Any]:
        return {
            "base": self.name,
            "parameters": self.parameters,
            "licence": self.licence,
            "here": self.is_here,
            "memory_gb": self.forecast.memory.total / 1e9,
            "seconds": self.forecast.seconds,
            "reasons": list(self.reasons),
            "unknown_languages": list(self.unknown),
            "probe": asdict(self.probe) if self.probe else None,
            "failed": self.failed,
        }


@dataclass(frozen=True)
class Choice:
    """`tried` are those that were probed, the best first; `others` those that were not. `metric` is what their scores are of;
    `classes` are the shares of the classes among the answers, where answers name one."""

    task: str
    metric: str
    languages: tuple[str, ...]
    share: float
    tried: list[Candidate]
    others: list[Candidate]
    folder: Path
    classes: tuple[float, ...] = ()

    @property
    def guess(self) -> float | None:
        """Bits an answer of guessing by how often each class occurs: the entropy of `classes`; None where there are no two."""
        return -sum(share * math.log2(share) for share in self.classes) if len(self.classes) > 1 else None

    @property
    def beats_guessing(self) -> bool:
        """Whether the best's bits are fewer than those of guessing, by more than chance."""
        if self.guess is None or self.best is None or self.best.probe is None:
            return True
        bits = self.best.probe.bits
        return paired_difference(mean(bits), mean([self.guess] * len(bits))).verdict == "better"

    @property
    def best(self) -> Candidate | None:
        return next((each for each in self.tried if each.probe), None)

    @property
    def lead(self) -> Difference | None:
        """The second's bits an answer less the best's, on the same held-out rows; None where there is no second."""
        seen = [each.probe for each in self.tried if each.probe]
        if len(seen) < 2 or len(seen[0].bits) != len(seen[1].bits):
            return None
        return paired_difference(mean(seen[0].bits), mean(seen[1].bits))

    def json(self) -> dict[str, Any]:
        best = self.best
        return {
            "task": self.task,
            "metric": self.metric,
            "languages": list(self.languages),
            "share": self.share,
            "guess": self.guess,
            "best": best.name if best else None,
            "revision": best.probe.revision if best and best.probe else None,
            "lead": difference_json(self.lead) if self.lead else None,
            "tried": [each.json() for each in self.tried],
            "others": [each.json() for each in self.others],
        }


class ChooseSettings(Settings):
    minutes: float = setting(30.0, metavar="M", gt=0)
    """About so many for trying bases, in all."""
    bases: Words | None = setting(None, metavar="LIST")
    """Try these, with commas between: names, hub ids (fetched where they are not here), folders; by default the catalogue's."""
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
    """Of a whole training."""
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
    """Of a whole training, after which the bases are compared."""
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

    Those on this disk (with `download`, the first few others too) are adapted for about `minutes` in all. The order is
    that of what the right answers of held-out rows cost each after the same share of its own whole training, in bits per
    answer. Raises `InputError`; `Interrupted` after Ctrl-C: what was finished is kept in `run.out`.
    """
    choice = _choose(settings, listener)
    return ChooseResult(
        **choice.json(), classes=choice.classes, beats_guessing=choice.beats_guessing, folder=choice.folder
    )


def _choose(asked: ChooseSettings, listener: Listener) -> Choice:
    settings, minutes, bases, licence = asked.run, asked.minutes, asked.bases, asked.licence
    if licence not in (None, "commercial"):
        raise SettingsError(f"--license {licence!r} is none that is known here", "it takes `commercial`")
    if bases is not None and not bases:
        raise SettingsError("--bases names no base", "give names with commas between, or leave it out")
    cache = cache_folder(settings.cache_dir)
    out = settings.out or Path("runs") / f"{settings.data.path.stem}-choose"
    splits = read_splits(settings.data, settings.data_seed).resolved()
    kind: Kind = splits.settings.kind or "generation"
    task, spoken = _TASKS[kind], _languages(splits)
    listener(Notice(f"the task looks like {task}" + (f" in {', '.join(spoken)}" if spoken else "")))
    if kind == "classification" and len(splits.answers.shares) == 1:
        listener(Notice("every answer is the same: there is nothing to learn, and nothing to choose by", warning=True))
    machine = this_machine(cache, settings.device, settings.precision, listener=listener)
    texts = character_counts(splits)
    settings = with_rows_apart(settings)

    def forecasts(name: str, config: Skeleton) -> Forecast:
        own = changed(settings, {"base": name, "data": splits.settings.model_dump()})
        return forecast_training(config, own, workload_for(config, own, splits, listener, texts), machine)

    def candidate(name: str, reasons: tuple[str, ...]) -> Candidate:
        config = _outline(name, kind, splits.answers.classes, settings, cache)
        entry = known_models().get(name)
        unknown = tuple(code for code in spoken if entry and code not in entry.languages)
        licence = entry.licence if entry else None
        return Candidate(name, config.parameters, licence, config.is_local, forecasts(name, config), reasons, unknown)

    if bases:
        found = [candidate(name, ("you named it",)) for name in dict.fromkeys(bases)]
        for each in found:
            if not each.forecast.fits:
                listener(Notice(f"{each.name} does not fit into memory here: not tried", warning=True))
        wanted = [each for each in found if each.forecast.fits]
    else:
        found = _of_catalogue(task, spoken, licence, machine.available, cache, candidate)
        wanted = [each for each in found if each.is_here]
        wanted += [each for each in found if not each.is_here][:_FETCHED] if asked.download else []
    if not wanted:
        raise SettingsError(
            "no base that fits is on this disk"
            + (f"; of the catalogue {', '.join(e.name for e in found[:3])} would" if found else ""),
            "`afina models pull NAME`, or --download, fetches one; --bases names your own",
        )
    full = sum(each.forecast.seconds for each in wanted)
    names = [each.name for each in wanted]
    plain = changed(settings, {"base": "starter"})
    with begun(out / "choose.yaml", plain, {"bases": names, "minutes": minutes}, "choice"):
        share = _share(out / "share.json", min(_SHARES[1], max(_SHARES[0], 60 * minutes * _TRAINING / full)))
        listener(
            Notice(
                f"{len(names)} base{'s are' if len(names) > 1 else ' is'} tried, each on {share:.0%} of a whole training: {', '.join(names)}"
            )
        )
        tried = [_probed(each, settings, share, out, listener) for each in wanted]
        tried.sort(key=lambda each: each.probe.bits_after if each.probe else math.inf)
        if not tried[0].probe:
            raise RunFailed(f"no base could be tried: {tried[0].failed}")
        others = [each for each in found if each.name not in names][:_LISTED]
        classes = tuple(splits.answers.shares) if kind == "classification" else ()
        choice = Choice(task, main_metric(kind).name, spoken, share, tried, others, out, classes)
        write_json(out / "choice.json", choice.json())
    return choice


def _share(file: Path, new: float) -> float:
    """The share of a whole training that each base gets: as it was begun with, whatever the machine's speed is by now."""
    with suppress(InputError, KeyError):
        return float(read_json(file)["share"])
    write_json(file, {"share": new})
    return new


def _languages(splits: Splits) -> tuple[str, ...]:
    """Those that questions and answers are in, the commonest first."""
    found: Counter[str] = Counter()
    for example in islice(splits.training_examples(), _READ):
        found.update(filter(None, (language(example.source), language(example.completion or ""))))
    total = sum(found.values())
    return tuple(code for code, n in found.most_common() if n >= _SPOKEN * total)


def _outline(name: str, kind: Kind, classes: Sequence[str], settings: RunSettings, cache: Path) -> Skeleton:
    found = read_skeleton(name, cache_dir=cache, classes=classes)
    if found.task.kind not in (None, kind):
        raise SettingsError(f"{name} names classes only, and the answers here are none", "leave it out of --bases")
    return found


def _of_catalogue(
    task: str, spoken: Sequence[str], licence: str | None, available: int, cache: Path, candidate: Any
) -> list[Candidate]:
    """Those that can do the task, know its languages, fit, and train in two hours; those praised for it first, then the larger."""
    found: list[tuple[Entry, Candidate]] = []
    for entry in select(known_models().values(), task, commercial=licence == "commercial"):
        known = all(code in entry.languages for code in spoken)
        if 2 * entry.parameters > available or not (known or is_local(entry.name, cache)):
            continue
        reasons = [f"praised for {task}: {claim.claim}" for claim in entry.praised(task)[:1]]
        reasons += [f"knows {', '.join(spoken)}"] if known and spoken else []
        try:
            made = candidate(entry.name, tuple(reasons))
        except InputError:  # not of an architecture that is known here, or a head that the task has no use for
            continue
        if made.forecast.fits and made.forecast.seconds <= _LONGEST:
            found.append((entry, made))
    found.sort(key=lambda pair: (not pair[0].praised(task), -pair[0].parameters))
    return [each for _, each in found]


def _probed(each: Candidate, settings: RunSettings, share: float, out: Path, listener: Listener) -> Candidate:
    """The candidate with what was seen of it, now or before."""
    listener(Notice(f"— {each.name} —"))
    file = out / f"{each.name.strip('/').replace('/', '--')}.json"
    own = changed(settings, {"base": each.name})
    try:
        if not file.exists():
            run_in_process(
                "base", {"settings": own.model_dump(mode="json"), "file": str(file), "share": share}, listener
            )
        return replace(each, probe=BaseTrial(**read_json(file)))
    except (RunFailed, InputError) as error:
        listener(Notice(f"{each.name} failed: {error}", warning=True))
        return replace(each, failed=str(error))


JOB = Job.of(choose)
