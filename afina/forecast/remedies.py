"""What would make a training fit into memory: changed settings, each with its own forecast, and smaller bases."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from afina.core.config import changed
from afina.core.errors import BaseModelError, InputError, SettingsError
from afina.forecast.estimate import Forecast, forecast_training
from afina.forecast.machines import Machine
from afina.forecast.memory import GB
from afina.forecast.workload import Workload
from afina.models.skeleton import Skeleton, read_skeleton
from afina.models.sources.catalogue import Entry, known_models
from afina.settings import RunSettings

_SHORT_ROWS, _SMALL_PASS, _RANK = 256, 256, 16
_SMALLER = 3  # smaller bases that are suggested, at most
_LEAST = {
    "full": 18.0,
    "nf4": 0.5,
    "int8": 1.0,
}  # bytes per parameter that are needed at least; otherwise those of 16 bits
Change = Callable[[RunSettings, Workload], tuple[RunSettings, Workload]]


def remedies(base: Skeleton, settings: RunSettings, workload: Workload, machine: Machine) -> list[tuple[str, Forecast]]:
    """Flags that make the training fit, with the forecast of each: every one that is enough alone, the least costly
    first; else the first few that are enough together.
    """
    changes = list(_changes(base, settings, workload))
    alone = [(text, _forecast(base, *change(settings, workload), machine)) for text, change in changes]
    found = [(text, seen) for text, seen in alone if seen and seen.fits]
    texts: list[str] = []
    for text, change in changes if not found else []:
        settings, workload = change(settings, workload)
        texts.append(text)
        seen = _forecast(base, settings, workload, machine)
        if seen and seen.fits:
            return [(" ".join(texts), seen)]
    return found


def _forecast(base: Skeleton, settings: RunSettings, workload: Workload, machine: Machine) -> Forecast | None:
    try:
        return forecast_training(base, settings, workload, machine)
    except InputError:  # a change that this base cannot have
        return None


def _changes(base: Skeleton, settings: RunSettings, workload: Workload) -> Iterator[tuple[str, Change]]:
    """What could be changed, as flags and as what they do to settings and rows; the least costly first."""

    def to(values: dict[str, Any]) -> Change:
        return lambda s, w: (changed(s, values), w)

    def cut(most: int) -> Change:
        return lambda s, w: (
            s,
            replace(w, lengths=[min(int(n), most) for n in w.lengths], longest=min(w.longest, most)),
        )

    longest = int(max(workload.lengths))
    if not settings.train.checkpoint_activations:
        yield "--train.checkpoint_activations true", to({"train.checkpoint_activations": True})
    if settings.train.tokens_per_pass > _SMALL_PASS and len(workload.lengths) > 1:
        yield f"--train.tokens_per_pass {_SMALL_PASS}", to({"train.tokens_per_pass": _SMALL_PASS})
    if longest > _SHORT_ROWS:
        most = 1 << ((longest - 1).bit_length() - 1)  # the next power of two below
        yield f"--data.max_length {most} --data.too_long cut", cut(most)
    if settings.method != "lora":
        yield "--method lora", to({"method": "lora", "last_layers": 2})  # which is read with method last only
        return
    if settings.lora.rank > _RANK:
        yield f"--lora.rank {_RANK}", to({"lora.rank": _RANK, "lora.alpha": 2.0 * _RANK})
    if settings.quantize is None:
        yield "--quantize nf4", to({"quantize": "nf4"})
    if settings.lora.target_modules == "all-linear" and base.task.continues_text:
        yield "--lora.target_modules attention", to({"lora.target_modules": "attention"})


def smaller(
    base: Skeleton, settings: RunSettings, workload: Workload, machine: Machine, cache: Path
) -> list[tuple[Entry, Forecast]]:
    """Other bases of the catalogue for the same task that fit, the largest first."""
    kind = base.entry.kind if base.entry else base.task.model_kind
    least = _LEAST.get(settings.method) or _LEAST.get(settings.quantize or "", 2.0)
    most = min(base.parameters, machine.available / least)
    found: list[tuple[Entry, Forecast]] = []
    for entry in sorted(known_models().values(), key=lambda each: -each.parameters):
        if len(found) < _SMALLER and entry.kind == kind and entry.parameters < most:
            with suppress(BaseModelError):  # of an architecture that this version of transformers does not know
                seen = _forecast(_skeleton(entry.name, cache), settings, workload, machine)
                if seen and seen.fits:
                    found.append((entry, seen))
    return found


@lru_cache(64)
def _skeleton(name: str, cache: Path) -> Skeleton:
    return read_skeleton(name, cache_dir=cache, classes=("", ""))


def refuse_what_cannot_fit(
    base: Skeleton, settings: RunSettings, workload: Workload, machine: Machine, cache: Path
) -> Forecast:
    """The forecast. Raises `SettingsError`, with the remedies, where it does not fit into memory."""
    seen = forecast_training(base, settings, workload, machine)
    if seen.fits or settings.allow_swap:
        return seen
    hints = [
        f"{text} (needs {each.memory.total / GB:.1f} GB)" for text, each in remedies(base, settings, workload, machine)
    ]
    if not hints:
        fitting = smaller(base, settings, workload, machine, cache)
        hints = [f"--base {entry.name} (needs {each.memory.total / GB:.1f} GB)" for entry, each in fitting]
    raise SettingsError(
        f"--base {base.name} with method {settings.method} needs about {seen.memory.total / GB:.1f} GB of memory, and "
        f"{seen.available / GB:.1f} GB are free",
        f"{'; or '.join(hints) or 'a machine with more memory'}; --allow-swap trains all the same",
    )
