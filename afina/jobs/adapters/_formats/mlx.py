"""mlx-lm: y = W x + scale · ((x a) b), a (in, rank), b (rank, out); DoRA's magnitude is called m."""

import math
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from afina.core.errors import AdapterError, InputError
from afina.core.files import read_json
from afina.jobs.adapters._formats._protocol import ForeignAdapter, ForeignFormat
from afina.jobs.adapters._formats._updates import Update, pairs_of, put_updates
from afina.lora.peft_config import CONFIG


class _Mlx(ForeignFormat):
    name = "mlx-lm"
    files = ("adapters.safetensors",)

    def claims(self, path: Path, names: Collection[str]) -> bool:
        return path.suffix == ".safetensors" and not any(name.startswith("base_model.") for name in names)

    def read(self, state: dict[str, Tensor], path: Path, alpha: float | None, parts: Sequence[bool]) -> ForeignAdapter:
        kind, scale = _settings(path.with_name(CONFIG), path)
        state = dict(state)
        magnitudes = {name.removesuffix(".m"): state.pop(name).float() for name in list(state) if name.endswith(".m")}
        pairs = pairs_of(state, path, (".lora_a", ".lora_b"))
        if magnitudes and kind == "lora":
            raise AdapterError(f"{path} holds magnitudes (m), yet its fine_tune_type is lora", "copy both files again")
        alone = sorted(magnitudes.keys() ^ pairs.keys()) if kind == "dora" else []
        if alone:
            raise AdapterError(f"{path}: of {alone[0]} the factors or the magnitude is missing", "copy the file again")
        updates = {layer: Update(a.T, b.T, scale, magnitudes.get(layer)) for layer, (a, b) in pairs.items()}
        return ForeignAdapter(partial(put_updates, updates=updates, path=path))


def _settings(beside: Path, path: Path) -> tuple[str, float]:
    """The kind of the adapter, and its scale."""
    try:
        settings = read_json(beside)
        kind, scale = settings.get("fine_tune_type", "lora"), float(settings["lora_parameters"]["scale"])
    except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise AdapterError(f"{beside} is not mlx-lm's ({error})", "it must lie beside the weights") from error
    if not 0 < scale < math.inf:
        raise AdapterError(f"{path}: scale is {scale}", "it is greater than 0")
    if kind not in ("lora", "dora"):
        raise AdapterError(f"{path}: fine_tune_type is {kind!r}, which is no adapter", "lora and dora are read")
    return kind, scale


FORMAT = _Mlx()
