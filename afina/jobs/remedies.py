"""What would make a training fit into memory: changes of its settings, each forecast in its turn."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from afina.base.catalogue import Entry, catalogue
from afina.base.outline import Outline, outline
from afina.core.errors import BaseModelError, InputError, SettingsError
from afina.jobs.forecast import GB, Forecast, Work, forecast
from afina.jobs.machines import Place
from afina.jobs.settings import RunSettings

_SHORT_ROWS, _SMALL_PASS = (1024, 512, 256), 256
_SMALLER = 3  # other bases that are named
_LEAST = {"full": 18.0, "nf4": 0.5, "int8": 1.0}  # bytes a parameter that are needed at least, else those of 16 bits


def remedies(base: Outline, settings: RunSettings, work: Work, place: Place) -> list[tuple[str, Forecast]]:
    """Flags that make it fit, with what it then needs: what costs least first; all together where no one change is enough."""
    found: list[tuple[str, Forecast]] = []
    texts: list[str] = []
    all_settings, all_work = settings, work
    for text, changed, rows in _changes(base, settings, work):
        seen = _forecast(base, changed, rows, place)
        if seen and seen.fits:
            found.append((text, seen))
        texts.append(text)
        if not text.startswith("--data"):
            all_settings = _merged(all_settings, settings, changed)
            together = _forecast(base, all_settings, all_work, place)
            if not found and together and together.fits and len(texts) > 1:
                return [(" ".join(texts), together)]
    return found


def _forecast(base: Outline, settings: RunSettings, work: Work, place: Place) -> Forecast | None:
    try:
        return forecast(base, settings, work, place)
    except InputError:  # a change that this base has no use for
        return None


def _changes(base: Outline, settings: RunSettings, work: Work) -> Iterator[tuple[str, RunSettings, Work]]:
    def train(**values: Any) -> RunSettings:
        return settings.model_copy(update={"train": settings.train.model_copy(update=values)})

    longest = int(max(work.lengths))
    if not settings.train.checkpoint_activations:
        yield "--train.checkpoint_activations true", train(checkpoint_activations=True), work
    if settings.train.tokens_per_pass > _SMALL_PASS and len(work.lengths) > 1:
        yield f"--train.tokens_per_pass {_SMALL_PASS}", train(tokens_per_pass=_SMALL_PASS), work
    for most in _SHORT_ROWS:
        if most < longest:
            rows = replace(work, lengths=[min(int(n), most) for n in work.lengths], longest=min(work.longest, most))
            yield f"--data.max_length {most} --data.too_long cut", settings, rows
    if settings.method == "lora" and settings.quantize is None:
        yield "--quantize nf4", settings.model_copy(update={"quantize": "nf4"}), work
    if settings.method == "lora" and settings.lora.target_modules == "all-linear" and base.task == "causal":
        lora = settings.lora.model_copy(update={"target_modules": "attention"})
        yield "--lora.target_modules attention", settings.model_copy(update={"lora": lora}), work
    if settings.method != "lora":
        yield "--method lora", settings.model_copy(update={"method": "lora"}), work


def _merged(so_far: RunSettings, before: RunSettings, changed: RunSettings) -> RunSettings:
    """`so_far` with what differs between the other two."""
    update: dict[str, Any] = {}
    for name in ("method", "quantize", "lora"):
        if getattr(changed, name) != getattr(before, name):
            update[name] = getattr(changed, name)
    if changed.train != before.train:
        own = {name: value for name, value in changed.train if value != getattr(before.train, name)}
        update["train"] = so_far.train.model_copy(update=own)
    return so_far.model_copy(update=update)


def smaller(
    base: Outline, settings: RunSettings, work: Work, place: Place, cache: Path
) -> list[tuple[Entry, Forecast]]:
    """Other bases of the catalogue that do the same and fit, the largest first."""
    kind = base.entry.kind if base.entry else {"classify": "encoder", "seq2seq": "seq2seq"}.get(base.task, "instruct")
    least = _LEAST.get(settings.method) or _LEAST.get(settings.quantize or "", 2.0)
    most = min(base.parameters, place.available / least)
    found: list[tuple[Entry, Forecast]] = []
    for entry in sorted(catalogue().values(), key=lambda each: -each.parameters):
        if len(found) < _SMALLER and entry.kind == kind and entry.parameters < most:
            with suppress(BaseModelError):  # of an architecture that this version of transformers does not know
                seen = _forecast(_outline(entry.name, cache), settings, work, place)
                if seen and seen.fits:
                    found.append((entry, seen))
    return found


@lru_cache(64)
def _outline(name: str, cache: Path) -> Outline:
    return outline(name, cache_dir=cache, classes=("", ""))


def refuse_what_cannot_fit(base: Outline, settings: RunSettings, work: Work, place: Place, cache: Path) -> Forecast:
    """The forecast; raises `SettingsError` with the remedies where it says that memory will not do."""
    seen = forecast(base, settings, work, place)
    if seen.fits or settings.allow_swap:
        return seen
    hints = [f"{text} (needs {each.memory.total / GB:.1f} GB)" for text, each in remedies(base, settings, work, place)]
    if not hints:
        fitting = smaller(base, settings, work, place, cache)
        hints = [f"--base {entry.name} (needs {each.memory.total / GB:.1f} GB)" for entry, each in fitting]
    raise SettingsError(
        f"--base {base.name} with method {settings.method} needs about {seen.memory.total / GB:.1f} GB of memory, and "
        f"{seen.available / GB:.1f} GB are free here",
        f"{'; or '.join(hints) or 'a machine with more memory'}; --allow-swap tries it all the same",
    )
