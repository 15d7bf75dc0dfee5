"""LitGPT: q, k and v of a layer are one, whose A and B are those of its adapted parts; names are its own."""

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from afina.core.config import read_yaml
from afina.core.errors import AdapterError, SettingsError
from afina.engine.architecture import Architecture
from afina.engine.decoder import Decoder
from afina.jobs.adapters._formats._protocol import ForeignAdapter, ForeignFormat
from afina.jobs.adapters._formats._updates import Update, Updates, fused, pairs_of, put_updates
from afina.lora.config import LoraConfig

SETTINGS = "hyperparameters.yaml"


def is_litgpt(path: Path, names: Collection[str]) -> bool:
    return path.with_name(SETTINGS).is_file() or any(".attn.qkv.lora_" in name for name in names)


class _LitGpt(ForeignFormat):
    name = "LitGPT"
    files = ("lit_model.lora.pth",)

    def claims(self, path: Path, names: Collection[str]) -> bool:
        return (
            path.suffix != ".safetensors"
            and is_litgpt(path, names)
            and not any(name.startswith("base_model.") for name in names)
        )

    def read(self, state: dict[str, Tensor], path: Path, alpha: float | None, parts: Sequence[bool]) -> ForeignAdapter:
        settings = _read_settings(path.with_name(SETTINGS))
        pairs = pairs_of(state, path.parent, (".lora_A", ".lora_B"))
        fit = sum(settings.enabled) or 1
        for layer, (a, b) in pairs.items():
            if b.shape[1] != settings.rank or a.shape[0] not in (settings.rank, fit * settings.rank):
                raise AdapterError(
                    f"{path.with_name(SETTINGS)} says rank {settings.rank}, {layer} has {b.shape[1]}",
                    "LitGPT writes it beside the weights",
                )

        def put_in(module: Any) -> LoraConfig:
            if not isinstance(module, Decoder):
                raise AdapterError(
                    "this base is of no family that LitGPT has names for", "give the base it was trained on (--base)"
                )
            try:
                updates = _renamed(pairs, settings, module.arch)
            except (KeyError, IndexError, RuntimeError, StopIteration) as error:
                raise AdapterError(
                    f"{path} does not fit this base, or the {SETTINGS} beside it ({type(error).__name__}: {error})",
                    "give the base it was trained on (--base), and the files as LitGPT wrote them",
                ) from error
            return put_updates(module, updates, path)

        return ForeignAdapter(put_in)


@dataclass(frozen=True)
class _Settings:
    """`enabled`: whether q, k and v are adapted."""

    rank: int
    alpha: float
    enabled: list[bool]


def _read_settings(path: Path) -> _Settings:
    try:
        given = read_yaml(path)
        alpha, rank = float(given["lora_alpha"]), int(given["lora_r"])
        enabled = [bool(given[f"lora_{part}"]) for part in ("query", "key", "value")]
        if rank < 1 or not 0 < alpha < math.inf:
            raise ValueError(f"lora_r is {rank}, lora_alpha {alpha}")
    except (SettingsError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise AdapterError(
            f"{path} does not say how the adapter was trained ({error})", "LitGPT writes it beside the weights"
        ) from error
    return _Settings(rank, alpha, enabled)


def _renamed(pairs: dict[str, tuple[Tensor, Tensor]], settings: _Settings, arch: Architecture) -> Updates:
    """LitGPT's layers by the names of a base's family."""
    names = arch.names
    found: Updates = {}
    for layer, (a, b) in pairs.items():
        update = Update(a, b, settings.alpha / settings.rank)
        numbered = re.fullmatch(r"transformer\.h\.(\d+)\.(attn|mlp)\.(\w+)", layer)
        if layer == "lm_head":
            found[names.head] = update
            continue
        if numbered is None:
            raise AdapterError(f"LitGPT's layer {layer!r} is not known", "files of LitGPT 0.5 and later are read")
        number, part, name = int(numbered[1]), numbered[2], numbered[3]
        at = f"{names.layers}.{number}.{names.attention if part == 'attn' else 'mlp'}"
        if name == "qkv":
            found |= {f"{at}.{key}": value for key, value in _parts(update, settings, arch, number).items()}
        elif part == "attn" or name == "proj":
            found[f"{at}.{names.out if part == 'attn' else names.down}"] = update
        else:
            found[f"{at}.{name}"] = update  # joined or renamed below
    return _mlp(found, arch)


def _parts(update: Update, settings: _Settings, arch: Architecture, number: int) -> Updates:
    """The update of q, k and v together as the base has them: each by its name, or in one."""
    spec, names = arch.specs[number], arch.names.qkv
    outputs = [spec.q_size, spec.kv_size, spec.kv_size]
    rows = iter(update.b.split([n for n, on in zip(outputs, settings.enabled, strict=True) if on]))
    chunks = iter(update.a.split(settings.rank))
    pieces = [replace(update, a=next(chunks), b=next(rows)) if on else None for on in settings.enabled]
    if len(names) == 3:
        return {name: piece for name, piece in zip(names, pieces, strict=True) if piece is not None}
    whole = fused(pieces, outputs)
    if arch.interleaved:  # q, k and v of a head lie together
        b = whole.b.unflatten(0, (3, spec.heads, spec.head_dim)).transpose(0, 1).flatten(0, 2)
        whole = replace(whole, b=b)
    return {names[0]: whole}


def _mlp(found: Updates, arch: Architecture) -> Updates:
    """fc, or fc_1 and fc_2, by the base's names."""
    up = arch.names.up
    renamed: Updates = {}
    for path, update in found.items():
        parent, _, name = path.rpartition(".")
        if not name.startswith("fc"):
            renamed[path] = update
        elif len(up) == 2 or not arch.gated:
            renamed[f"{parent}.{up[{'fc': 0, 'fc_1': 0, 'fc_2': 1}[name]]}"] = update
        elif name == "fc_1":
            renamed[f"{parent}.{up[0]}"] = fused([update, found[f"{parent}.fc_2"]], [arch.inner, arch.inner])
    return renamed


FORMAT = _LitGpt()
