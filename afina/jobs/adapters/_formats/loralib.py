"""loralib: ΔW = alpha/rank · B A; a fused layer (MergedLinear) has an A and a B for each of its adapted parts, in
turn."""

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from afina.core.errors import AdapterError
from afina.jobs.adapters._formats._protocol import ForeignAdapter, ForeignFormat
from afina.jobs.adapters._formats._updates import Update, Updates, fused, pairs_of, put_updates
from afina.jobs.adapters._formats.litgpt import is_litgpt


class _Loralib(ForeignFormat):
    name = "loralib"
    unscaled = True

    def claims(self, path: Path, names: Collection[str]) -> bool:
        return (
            path.suffix != ".safetensors"
            and not is_litgpt(path, names)
            and not any(name.startswith("base_model.") for name in names)
        )

    def read(self, state: dict[str, Tensor], path: Path, alpha: float | None, parts: Sequence[bool]) -> ForeignAdapter:
        if alpha is None:
            raise AdapterError(f"{path} does not say alpha", "give --alpha, the lora_alpha that it was trained with")
        found: Updates = {}
        for layer, (a, b) in pairs_of(state, path, (".lora_A", ".lora_B")).items():
            rank = b.shape[1]
            if a.shape[0] == rank:
                found[layer] = Update(a, b, alpha / rank)
                continue
            if a.shape[0] != rank * sum(parts):
                raise AdapterError(
                    f"{path}: {layer} is fused of {a.shape[0] / rank:g} adapted parts",
                    "give --parts, the enable_lora that it was trained with, such as 1,0,1",
                )
            pieces = iter(Update(*pair, alpha / rank) for pair in zip(a.split(rank), b.chunk(sum(parts)), strict=True))
            outputs = [len(b) // sum(parts)] * len(parts)
            found[layer] = fused([next(pieces) if on else None for on in parts], outputs)
        return ForeignAdapter(partial(put_updates, updates=found, path=path))


FORMAT = _Loralib()
