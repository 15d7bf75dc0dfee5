"""`fit`: what adapting a base to some data will need: memory, time, disk, before anything is fetched."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from afina.core.config import Result, Settings, build, changed, section, setting
from afina.core.device import cache_folder, is_device
from afina.core.errors import InputError
from afina.core.events import Listener, Notice, ignore
from afina.core.job import Job
from afina.data.settings import DataSettings
from afina.data.splits import read_splits
from afina.forecast.cards import MACHINES
from afina.forecast.estimate import Forecast, forecast_training
from afina.forecast.expected import NO_DATA, expected_workload
from afina.forecast.machines import Machine, libraries, named, this_machine
from afina.forecast.memory import GB
from afina.forecast.remedies import remedies, smaller
from afina.forecast.workload import Workload
from afina.models.skeleton import Skeleton, need_classes, read_skeleton
from afina.settings import RunSettings, without_adapter

ForecastMethod = Literal["lora", "qlora", "full", "head"]
FORECAST_METHODS: tuple[ForecastMethod, ...] = ("lora", "qlora", "full", "head")


@dataclass(frozen=True)
class MachineForecast:
    """The methods on one machine: what each needs, or the error that says why it cannot be; where one does not fit, the
    flags that would make it fit, and smaller bases that fit as they are.
    """

    machine: Machine
    methods: dict[ForecastMethod, Forecast | str]
    changes: dict[ForecastMethod, list[tuple[str, Forecast]]]
    bases: dict[ForecastMethod, list[tuple[str, Forecast]]]

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
    method: ForecastMethod | None = setting(None, metavar="METHOD")
    """Only this; by default all four."""
    machine: str | None = setting(None, "--device", metavar="DEVICE")
    """Only there: cpu, cuda, mps, or a machine by name (24gb, 80gb, laptop; by default this machine, then those), or a
    card (h100, a100, l4, t4, rtx4090, …)."""
    run: RunSettings = section(
        RunSettings(data=DataSettings(path=NO_DATA)),
        without=(
            "base",
            "method",
            "last_layers",
            "device",
            "out",
            "overwrite",
            "export",
            "adapter",
            "force",
            "track",
            "allow_swap",
        ),
    )

    @model_validator(mode="before")
    @classmethod
    def _without_data(cls, values: Any) -> Any:
        """Where no DATA is given, rows of a typical length are assumed."""
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
    """What each needs there: `fits`, `memory_gb`, `seconds` and more, with `remedies` and smaller `bases` where it
    does not fit; or the `error` that says why it cannot be.
    """
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


def _forecasts(
    wanted: FitSettings, listener: Listener
) -> tuple[Skeleton, Workload, MachineForecast, dict[str, MachineForecast]]:
    """What is forecast for, at the first machine (this one, or the one that was asked for), and at the others by
    name.
    """
    settings = changed(wanted.run, {"base": wanted.base})
    methods, machine = (wanted.method,) if wanted.method else FORECAST_METHODS, wanted.machine
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
        listener(Notice(f"{base.name} has no weights: this is a forecast by its configuration alone", warning=True))
    workload = expected_workload(base, settings, splits, listener)
    if machine and not is_device(machine):
        machines = [named(machine)]
    else:
        machines = [this_machine(cache, machine, settings.precision, listener=listener)]
        machines += [named(name) for name in MACHINES] if machine is None else []
    first, *others = (
        _forecast_on(base, settings, workload, each, methods, None if i else cache) for i, each in enumerate(machines)
    )
    return base, workload, first, dict(zip(MACHINES, others, strict=False))


def with_method(settings: RunSettings, method: ForecastMethod) -> RunSettings:
    """The settings with a method of `FORECAST_METHODS`."""
    if method == "qlora":
        return changed(settings, {"method": "lora", "quantize": settings.quantize or "nf4"})
    if method == "lora":
        return changed(settings, {"method": "lora"})
    return build(RunSettings, without_adapter(settings.model_dump()) | {"method": method, "quantize": None})


def _forecast_on(
    base: Skeleton,
    settings: RunSettings,
    workload: Workload,
    machine: Machine,
    methods: Sequence[ForecastMethod],
    cache: Path | None,
) -> MachineForecast:
    """The methods on `machine`; with `cache`, smaller bases that fit are looked for too (which takes a second)."""
    found: dict[ForecastMethod, Forecast | str] = {}
    changes: dict[ForecastMethod, list[tuple[str, Forecast]]] = {}
    bases: dict[ForecastMethod, list[tuple[str, Forecast]]] = {}
    for method in methods:
        wanted = with_method(settings, method)
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
    return MachineForecast(machine, found, changes, bases)


JOB = Job.of(fit)
