"""`fit`: what adapting a base to some data will need: memory, time, disk, before anything is fetched."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from afina.core.config import Result, Settings, build, changed, section, setting
from afina.core.device import cache_folder
from afina.core.errors import InputError
from afina.core.events import Listener, Notice, ignore
from afina.core.job import Job
from afina.data.load import render_splits
from afina.data.settings import DataSettings
from afina.data.splits import Splits, character_counts, read_splits
from afina.forecast.estimate import Forecast, forecast_training
from afina.forecast.machines import MACHINES, Machine, libraries, named, this_machine
from afina.forecast.memory import GB
from afina.forecast.remedies import remedies, smaller
from afina.forecast.workload import CHARACTERS, Workload, room_for, workload_of
from afina.models.load import load_tokenizer
from afina.models.skeleton import Skeleton, need_classes, read_skeleton
from afina.models.sources.catalogue import Entry
from afina.settings import RunSettings

Texts = list[tuple[int, int]]  # characters of a row: of what is read, and of the answer
Method = Literal["lora", "qlora", "full", "head"]
METHODS: tuple[Method, ...] = ("lora", "qlora", "full", "head")
NO_DATA = Path("no-data")  # in the place of a file, where none was given
_ROWS, _TOKENS = 1_000, 256  # that are reckoned with then
_TEMPLATE = 12  # tokens of a chat template around a row


@dataclass(frozen=True)
class At:
    """The methods at a place: what each needs, or the error that says why it cannot be; where one does not fit, the flags that would
    make it, and smaller bases that would fit as they are."""

    machine: Machine
    methods: dict[Method, Forecast | str]
    changes: dict[Method, list[tuple[str, Forecast]]]
    bases: dict[Method, list[tuple[str, Forecast]]]

    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for method, each in self.methods.items():
            if isinstance(each, str):
                found[method] = {"error": each}
                continue
            found[method] = each.json()
            if not each.fits:
                found[method]["remedies"] = [{"flags": text} | _short(seen) for text, seen in self.changes[method]]
                found[method]["bases"] = [{"base": name} | _short(seen) for name, seen in self.bases[method]]
        return {"machine": self.machine.name, "methods": found}


def _short(seen: Forecast) -> dict[str, float]:
    return {"memory_gb": seen.memory.total / GB, "seconds": seen.seconds}


class FitSettings(Settings):
    base: str = setting(..., positional="BASE")
    """Name of `afina models list`, hub id, folder or .gguf file."""
    method: Method | None = setting(None, metavar="METHOD")
    """Only this; by default all four."""
    machine: str | None = setting(None, "--device", metavar="DEVICE")
    """Only there: cpu, cuda, mps, or a machine by name (24gb, 80gb, laptop); by default this machine, then those."""
    run: RunSettings = section(
        RunSettings(data=DataSettings(path=NO_DATA)),
        without=(
            "base",
            "method",
            "last_layers",
            "device",
            "out",
            "overwrite",
            "adapter",
            "force",
            "track",
            "allow_swap",
        ),
    )

    @model_validator(mode="before")
    @classmethod
    def _without_data(cls, values: Any) -> Any:
        """Where no DATA is given, rows of a usual length are assumed."""
        if isinstance(values, dict) and isinstance(values.get("run"), dict):
            data = {"path": NO_DATA, **(values["run"].get("data") or {})}
            return {**values, "run": {**values["run"], "data": data}}
        return values


class FitResult(Result):
    base: str
    parameters: int
    here: bool
    """Whether the base's files are on this disk."""
    work: dict[str, Any]
    """Rows, tokens, the longest row, and how they are known."""
    machine: str
    methods: dict[str, dict[str, Any]]
    """What each needs there: `fits`, `memory_gb`, `seconds` and more, with `remedies` and smaller `bases` where it does not fit;
    or the `error` that says why it cannot be."""
    machines: dict[str, dict[str, Any]]
    """The same of the machines by name."""
    file_bytes: int = Field(exclude=True)
    """To fetch, where the base is not here."""
    free_bytes: dict[str, int] = Field(exclude=True)
    """Memory of each machine, by its name."""


def fit(settings: FitSettings, listener: Listener = ignore) -> FitResult:
    """Forecasts a method for `run`, or each, at `machine` (None: here and at all machines by name).

    Raises `InputError` where the base or the data cannot be read.
    """
    base, workload, first, others = _forecasts(settings, listener)
    return FitResult(
        base=base.name,
        parameters=base.parameters,
        here=base.is_local,
        work={
            "rows": len(workload.lengths),
            "tokens": workload.tokens,
            "longest": int(max(workload.lengths)),
            "known": workload.counted,
        },
        **first.json(),
        machines={name: each.json() for name, each in others.items()},
        file_bytes=base.file_bytes,
        free_bytes={at.machine.name: at.machine.available for at in (first, *others.values())},
    )


def _forecasts(wanted: FitSettings, listener: Listener) -> tuple[Skeleton, Workload, At, dict[str, At]]:
    """What is forecast for, at the first machine (this one, or the one that was asked for), and at the others by name."""
    settings = changed(wanted.run, {"base": wanted.base})
    methods, machine = (wanted.method,) if wanted.method else METHODS, wanted.machine
    libraries()  # before the rows and the tokenizer are read
    cache = cache_folder(settings.cache_dir)
    splits = None
    if settings.data.path != NO_DATA:
        splits = read_splits(settings.data, settings.data_seed).resolved()
        settings = changed(settings, {"data": splits.settings.model_dump()})
    classes = splits.answers.classes if splits else ("", "")
    base = read_skeleton(
        settings.base,
        revision=settings.revision,
        cache_dir=cache,
        task=settings.task,
        classes=classes,
        listener=listener,
    )
    if base.task.needs_classes:
        need_classes(classes)
    if base.is_local and not base.file_bytes:
        listener(Notice(f"{base.name} has no weights: this is said of its configuration alone", warning=True))
    workload = workload_for(base, settings, splits, listener)
    if machine and machine.partition(":")[0] not in ("cpu", "cuda", "mps"):
        machines = [named(machine)]
    else:
        machines = [this_machine(cache, machine, settings.precision, listener=listener)]
        machines += [named(name) for name in MACHINES] if machine is None else []
    first, *others = (
        _at(base, settings, workload, each, methods, None if i else cache) for i, each in enumerate(machines)
    )
    return base, workload, first, dict(zip(MACHINES, others, strict=False))


def fitting(entries: Iterable[Entry], cache: Path) -> dict[str, int]:
    """The entries that LoRA can adapt in the memory that is free here, and the bytes that it takes, for rows of a usual length."""
    machine, workload = this_machine(cache, measure=False), _usual()
    settings = RunSettings(data=DataSettings(path=NO_DATA))
    found = {}
    for entry in entries:
        if 2 * entry.parameters > machine.available:
            continue
        with suppress(InputError):  # of an architecture that this version of transformers does not know
            base = read_skeleton(entry.name, cache_dir=cache, classes=("", ""))
            memory = forecast_training(base, settings, workload, machine).memory.total
            if memory <= machine.available:
                found[entry.name] = memory
    return found


def chosen(settings: RunSettings, method: Method) -> RunSettings:
    """The settings with a method of `METHODS`."""
    if method == "qlora":
        return changed(settings, {"method": "lora", "quantize": settings.quantize or "nf4"})
    if method == "lora":
        return changed(settings, {"method": "lora"})
    values = settings.model_dump() | {
        "method": method,
        "quantize": None,
        "lora": {},
    }  # LoRA's settings say nothing here
    return build(RunSettings, values)


def _at(
    base: Skeleton,
    settings: RunSettings,
    workload: Workload,
    machine: Machine,
    methods: Sequence[Method],
    cache: Path | None,
) -> At:
    """With `cache`, bases that would fit are looked for too (it takes a second)."""
    found: dict[Method, Forecast | str] = {}
    changes: dict[Method, list[tuple[str, Forecast]]] = {}
    bases: dict[Method, list[tuple[str, Forecast]]] = {}
    for method in methods:
        wanted = chosen(settings, method)
        try:
            seen = forecast_training(base, wanted, workload, machine)
        except InputError as error:
            found[method] = str(error)
            continue
        found[method] = seen
        if not seen.fits:
            changes[method] = remedies(base, wanted, workload, machine)
            asked = not changes[method] and (method == "lora" or len(methods) == 1)
            fitting_ones = smaller(base, wanted, workload, machine, cache) if cache and asked else []
            bases[method] = [(entry.name, each) for entry, each in fitting_ones]
    return At(machine, found, changes, bases)


def workload_for(
    base: Skeleton, settings: RunSettings, splits: Splits | None, listener: Listener, texts: Texts | None = None
) -> Workload:
    """The rows in tokens: counted where the base is here, else reckoned by their characters (`texts`, which are read where they are not
    given)."""
    if splits is None:
        return _usual(settings.data.max_length)
    if base.is_local:
        tokenizer, context = load_tokenizer(
            settings.base,
            base.task,
            revision=settings.revision,
            cache_dir=settings.cache_dir,
            classes=splits.answers.classes,
        )
        data = render_splits(splits, tokenizer, context, settings.cache_dir, listener)
        for line in data.notices:
            listener(Notice(line, warning=True))
        return workload_of(data, room_for(data.most_labelled))
    texts = texts or character_counts(splits)
    most = min(settings.data.max_length or 1 << 30, base.context_length)
    lengths = [min(most, round((asked + answer) / CHARACTERS) + _TEMPLATE) for asked, answer in texts]
    answers = [1.0 if base.task.needs_classes else answer / CHARACTERS + 2 for _, answer in texts]
    tested = int(splits.test.sum() or splits.held_out.sum())
    mean = sum(lengths) / len(lengths)
    answer = sum(answers) / len(answers)
    workload = Workload(
        lengths, min(1.0, answer / mean), round(mean * int(splits.held_out.sum())), tested, max(1.0, mean - answer), max(lengths), answer,
        room_for(max(answers)),
    )  # fmt: skip
    return replace(
        workload,
        counted=f"reckoned by the texts' lengths, for the tokenizer of {base.name} is not here; in a language that it knows little they may be twice as many",
    )


def _usual(max_length: int | None = None) -> Workload:
    tokens = min(_TOKENS, max_length or _TOKENS)
    half, asked = tokens // 2, _ROWS // 10
    return Workload(
        [tokens] * _ROWS, 0.5, asked * tokens, asked, half, half, half, 2 * half,
        f"no data were given: {_ROWS:,} rows of {tokens} tokens are reckoned with",
    )  # fmt: skip


JOB = Job.of(fit)
