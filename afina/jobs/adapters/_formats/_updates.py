"""Low-rank updates by the paths of a base's layers, which most formats come down to: y = W x + s · B(A x)."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afina.core.config import build
from afina.core.errors import AdapterError, SettingsError
from afina.lora.config import LoraConfig
from afina.lora.injection import inject
from afina.lora.peft_files import PREFIX, adapter_state


@dataclass(frozen=True)
class Update:
    """A (rank, in), B (out, rank), the scaling s, and DoRA's magnitude (out,), of one layer."""

    a: Tensor
    b: Tensor
    scaling: float
    magnitude: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.a.shape[0]


Updates = dict[str, Update]  # by the layer's path


def pairs_of(state: dict[str, Tensor], path: Path | str, ends: tuple[str, str]) -> dict[str, tuple[Tensor, Tensor]]:
    """(first, second) of each layer, by its path. Raises `AdapterError` where a name is of no pair."""
    found = {}
    for name in state:
        if name.endswith(ends[0]):
            layer = name.removesuffix(ends[0])
            if layer + ends[1] not in state:
                raise AdapterError(f"{path}: {layer}{ends[1]} is missing", "copy the file again from where it was made")
            found[layer] = (state[name].float(), state[layer + ends[1]].float())
            if any(each.dim() != 2 or not each.numel() for each in found[layer]):
                shapes = [tuple(each.shape) for each in found[layer]]
                raise AdapterError(
                    f"{path}: the factors of {layer} have shapes {shapes}, not two dimensions each",
                    "matrices are read; adapters of experts are not",
                )
    unread = sorted(set(state) - {layer + end for layer in found for end in ends})
    if unread or not found:
        what = f"{unread[0]} is no adapter's" if unread else "there is no adapter in it"
        raise AdapterError(f"{path}: {what}", f"layers with {ends[0]} and {ends[1]} are read")
    return found


def fused(pieces: Sequence[Update | None], outputs: Sequence[int]) -> Update:
    """One update of a layer whose outputs are those of several, side by side."""
    present = [piece for piece in pieces if piece is not None]
    b = torch.zeros(sum(outputs), sum(piece.rank for piece in present))
    at = rank_at = 0
    for piece, n in zip(pieces, outputs, strict=True):
        if piece is not None:
            b[at : at + n, rank_at : rank_at + piece.rank] = piece.b
            rank_at += piece.rank
        at += n
    return Update(torch.cat([piece.a for piece in present]), b, present[0].scaling)


def put_updates(module: Any, updates: Updates, path: Path) -> LoraConfig:
    """Injects the updates of the file at `path`; their configuration. Raises `AdapterError` where they do not fit."""
    try:
        config = _config(updates)
    except SettingsError as error:
        raise AdapterError(f"{path} holds updates that no adapter has: {error}", "copy it again") from error
    inject(module, config)
    own = adapter_state(module)
    for name, value in _named(updates, own).items():
        if value.shape != own[name].shape:
            raise AdapterError(
                f"{path}: {name.removeprefix(PREFIX)} has shape {tuple(value.shape)}, "
                f"this base needs {tuple(own[name].shape)}",
                "give the base it was trained on (--base)",
            )
        own[name].copy_(value)
    return config


def _config(updates: Updates) -> LoraConfig:
    """The commonest rank and alpha, and patterns for the others."""
    ranks = {path: update.rank for path, update in updates.items()}
    alphas = {path: update.scaling * update.rank for path, update in updates.items()}
    rank, alpha = Counter(ranks.values()).most_common(1)[0][0], Counter(alphas.values()).most_common(1)[0][0]
    values = {
        "rank": rank,
        "alpha": alpha,
        "variant": "dora" if any(update.magnitude is not None for update in updates.values()) else "lora",
        "target_modules": tuple(updates),
        "rank_pattern": {re.escape(path): each for path, each in ranks.items() if each != rank},
        "alpha_pattern": {re.escape(path): each for path, each in alphas.items() if each != alpha},
    }
    return build(LoraConfig, values)


def _named(updates: Updates, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names that the injected adapter has, each of which must be given."""
    found: dict[str, Tensor] = {}
    for path, update in updates.items():
        embedding = f"{PREFIX}{path}.lora_embedding_A" in own
        ends = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
        found |= {f"{PREFIX}{path}.{end}": value for end, value in zip(ends, (update.a, update.b), strict=True)}
        if update.magnitude is not None:
            found[f"{PREFIX}{path}.lora_magnitude_vector"] = update.magnitude
    missing = [name for name in own if name not in found]
    if missing:
        raise AdapterError(f"the file does not give {missing[0].removeprefix(PREFIX)}", "copy it again")
    return found
