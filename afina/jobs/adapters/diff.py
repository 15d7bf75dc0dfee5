"""`adapters diff`: two adapters compared: settings that differ, and how far apart their updates are."""

from pathlib import Path
from typing import Any

from afina.core.config import Result, Settings, setting
from afina.core.events import Listener, ignore
from afina.core.job import Job
from afina.jobs.adapters.show import ShowAdapterSettings, check_one_base, show
from afina.lora.arithmetic import Factors, check_one_shape, read_factors
from afina.runs.facts import adapter_folder


class DiffAdaptersSettings(Settings):
    first: Path = setting(..., positional="RUN")
    """Folder of a run or of an adapter."""
    second: Path = setting(..., positional="RUN")
    """The folder it is compared with."""


class DiffAdaptersResult(Result):
    settings: dict[str, tuple[Any, Any]]
    """What differs: of the first, and of the second."""
    cosine: float | None
    """Of the updates ΔW = s·BA of all layers; 1: the same direction. None where an update is zero."""
    distance: float | None
    """‖ΔW₁ − ΔW₂‖ / ‖ΔW₁‖."""
    only_in_one: tuple[str, ...]
    """Layers that one of the two adapts."""
    layers: tuple[dict[str, Any], ...]
    """`layer`, `cosine` and `distance` of each layer."""


def diff(settings: DiffAdaptersSettings, listener: Listener = ignore) -> DiffAdaptersResult:
    """Compares two adapters, layer by layer and as a whole, from their factors alone. Raises `AdapterError`."""
    runs = (settings.first, settings.second)
    adapters = [show(ShowAdapterSettings(run=run)) for run in runs]
    check_one_base(adapters, listener)
    first, second = (each.model_dump(mode="json") for each in adapters)
    one, other = (read_factors(adapter_folder(run)) for run in runs)
    both = [path for path in one if path in other]
    for path in both:
        check_one_shape(path, [one[path], other[path]])
    products = {path: _products(one[path], other[path]) for path in both}
    sums = [sum(values) for values in zip(*products.values(), strict=True)] or [0.0, 0.0, 0.0]
    return DiffAdaptersResult(
        settings={key: (first[key], second[key]) for key in first if first[key] != second[key]},
        **_distances(*sums),
        only_in_one=tuple(sorted(_layer(path) for path in one.keys() ^ other.keys())),
        layers=tuple({"layer": _layer(path), **_distances(*products[path])} for path in both),
    )


def _layer(path: str) -> str:
    return path.split(".lora_")[0]


def _products(a: Factors, b: Factors) -> tuple[float, float, float]:
    """⟨ΔW₁, ΔW₂⟩, ‖ΔW₁‖² and ‖ΔW₂‖² from the factors: ⟨B₁A₁, B₂A₂⟩ = Σ (B₁ᵀB₂) ∘ (A₁A₂ᵀ)."""

    def product(x: Factors, y: Factors) -> float:
        return x.scaling * y.scaling * float(((x.b.T @ y.b) * (x.a @ y.a.T)).sum())

    return product(a, b), product(a, a), product(b, b)


def _distances(product: float, first: float, second: float) -> dict[str, float | None]:
    if not first or not second:
        return {"cosine": None, "distance": None}
    return {
        "cosine": product / (first * second) ** 0.5,
        "distance": (max(0.0, first + second - 2 * product) / first) ** 0.5,
    }


JOB = Job.of(diff)
