"""`adapters convert`: rewrite an adapter of mlx-lm, LitGPT or loralib in PEFT's format.

All are y = W x + s · B(A x); they differ in names, in what is transposed, and in how fused layers are stored.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from afina.core.config import LISTED, Settings, setting
from afina.core.errors import AdapterError, InputError
from afina.core.events import Listener, ignore
from afina.core.files import read_json, write_json
from afina.core.job import Job
from afina.engine.architecture import Architecture
from afina.engine.decoder import Decoder
from afina.jobs.adapters._files import WrittenAdapter
from afina.lora.config import LoraConfig
from afina.lora.injection import inject
from afina.lora.peft_files import PREFIX, adapter_state, save_adapter
from afina.models.load import load_base
from afina.runs.facts import facts_of, save_tokenizer
from afina.runs.folder import check_new

MLX, LITGPT = "adapters.safetensors", "lit_model.lora.pth"


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


class ConvertAdapterSettings(Settings):
    source: Path = setting(..., positional="FILE")
    """The adapter's file, or the folder that holds it."""
    out: Path = setting(..., metavar="DIR")
    """New folder to write to."""
    base: str = setting(...)
    """What the adapter was trained on."""
    alpha: float | None = setting(None, metavar="A", gt=0)
    """loralib's lora_alpha, which its files do not hold."""
    parts: Annotated[tuple[bool, ...], LISTED] = setting((), metavar="1,0,1")
    """loralib's enable_lora, for fused layers."""
    revision: str | None = setting(None, metavar="REV")
    """Branch, tag or commit of a hub base."""
    cache_dir: Path | None = setting(None, metavar="DIR")
    """Where downloaded models are kept."""


def convert(settings: ConvertAdapterSettings, listener: Listener = ignore) -> WrittenAdapter:
    """Writes the adapter in `source` to `out`, in PEFT's format.

    Raises `AdapterError` where something in the file is not understood or fits no layer of the base: nothing is dropped
    silently.
    """
    out, base, alpha, parts = settings.out, settings.base, settings.alpha, settings.parts
    check_new(out)
    path = _file(settings.source)
    if path.suffix == ".safetensors":
        if alpha is not None or parts:
            raise AdapterError(
                f"{path} says its scale itself", "leave --alpha and --parts out: they are for loralib's files"
            )
        updates: Any = _mlx(path)
    else:
        state = _pickled(path)
        beside = path.parent / "hyperparameters.yaml"
        litgpt = beside.is_file() or any(".attn.qkv.lora_" in name for name in state)
        updates = _litgpt(state, beside) if litgpt else _loralib(state, path, alpha, parts)
    loaded = load_base(base, revision=settings.revision, precision="fp32", cache_dir=settings.cache_dir, task="causal")
    module = loaded.model.module
    if callable(updates):
        if not isinstance(module, Decoder):
            raise AdapterError(
                f"base {base!r} is of no family that LitGPT has names for", "give the base it was trained on"
            )
        try:
            updates = updates(module.arch)
        except (KeyError, IndexError, RuntimeError, StopIteration) as error:
            raise AdapterError(
                f"{path} does not fit base {base!r}, or the hyperparameters.yaml beside it "
                f"({type(error).__name__}: {error})",
                "give the base it was trained on (--base), and the files as LitGPT wrote them",
            ) from error
    config = _config(updates)
    inject(module, config)
    own = adapter_state(module)
    for name, value in _named(updates, own).items():
        if value.shape != own[name].shape:
            raise AdapterError(
                f"{path}: {name.removeprefix(PREFIX)} has shape {tuple(value.shape)}, "
                f"base {base!r} needs {tuple(own[name].shape)}",
                "give the base it was trained on (--base)",
            )
        own[name].copy_(value)
    facts = facts_of(loaded, base)
    save_adapter(module, config, out, facts["load"]["name"])
    save_tokenizer(loaded, out)
    write_json(out / "afina.json", facts)
    return WrittenAdapter(adapter=out)


def _file(source: Path) -> Path:
    if not source.exists():
        raise AdapterError(f"{source}: no such file or folder", "check the path")
    found = [source] if source.is_file() else [source / name for name in (MLX, LITGPT) if (source / name).is_file()]
    if not found:
        raise AdapterError(
            f"{source} holds neither {MLX} (mlx-lm) nor {LITGPT} (LitGPT)", "give the file itself where it is loralib's"
        )
    return found[0]


def _pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of torch.save, read without running anything that it holds."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise AdapterError(
            f"{path} cannot be read as plain tensors ({type(error).__name__})",
            "only files of tensors are read: a pickle can run any code",
        ) from error
    state = state.get("model", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(name, str) and _plain(value) for name, value in state.items()):
        raise AdapterError(f"{path} holds no plain tensors by name", "give the file of the adapter's state")
    return {name: value.float() for name, value in state.items()}


def _plain(value: Any) -> bool:
    """A matrix or vector of real numbers, in memory."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta and not value.is_complex()


def _pairs(state: dict[str, Tensor], path: Path | str, ends: tuple[str, str]) -> dict[str, tuple[Tensor, Tensor]]:
    """(first, second) of each layer, by its path. Raises `AdapterError` where a name is of no pair."""
    found = {}
    for name in state:
        if name.endswith(ends[0]):
            layer = name.removesuffix(ends[0])
            if layer + ends[1] not in state:
                raise AdapterError(f"{path}: {layer}{ends[1]} is missing", "copy the file again from where it was made")
            found[layer] = (state[name], state[layer + ends[1]])
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


# ------------------------------------------------------------------------------------------------ mlx-lm


def _mlx(path: Path) -> Updates:
    """y = W x + scale · ((x a) b), a (in, rank), b (rank, out); DoRA's magnitude is called m."""
    try:
        settings = read_json(path.with_name("adapter_config.json"))
        kind, scale = settings.get("fine_tune_type", "lora"), float(settings["lora_parameters"]["scale"])
    except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise AdapterError(
            f"{path.with_name('adapter_config.json')} is not mlx-lm's ({error})", "it must lie beside the weights"
        ) from error
    if not 0 < scale < math.inf:
        raise AdapterError(f"{path}: scale is {scale}", "it is greater than 0")
    if kind not in ("lora", "dora"):
        raise AdapterError(f"{path}: fine_tune_type is {kind!r}, which is no adapter", "lora and dora are read")
    try:
        state = {name: value.float() for name, value in load(path.read_bytes()).items()}
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} cannot be read: {error}", "copy it again from where it was made") from error
    magnitudes = {name.removesuffix(".m"): state.pop(name) for name in list(state) if name.endswith(".m")}
    pairs = _pairs(state, path, (".lora_a", ".lora_b"))
    if magnitudes and kind == "lora":
        raise AdapterError(f"{path} holds magnitudes (m), yet its fine_tune_type is lora", "copy both files again")
    alone = sorted(magnitudes.keys() ^ pairs.keys()) if kind == "dora" else []
    if alone:
        raise AdapterError(f"{path}: of {alone[0]} the factors or the magnitude is missing", "copy the file again")
    return {layer: Update(a.T, b.T, scale, magnitudes.get(layer)) for layer, (a, b) in pairs.items()}


# ------------------------------------------------------------------------------------------------ loralib


def _loralib(state: dict[str, Tensor], path: Path, alpha: float | None, parts: Sequence[bool]) -> Updates:
    """ΔW = alpha/rank · B A; a fused layer (MergedLinear) has an A and a B for each of its adapted parts, in turn."""
    if alpha is None:
        raise AdapterError(f"{path} does not say alpha", "give --alpha, the lora_alpha that it was trained with")
    found = {}
    for layer, (a, b) in _pairs(state, path, (".lora_A", ".lora_B")).items():
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
        found[layer] = _fused([next(pieces) if on else None for on in parts], [len(b) // sum(parts)] * len(parts))
    return found


def _fused(pieces: Sequence[Update | None], outputs: Sequence[int]) -> Update:
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


# ------------------------------------------------------------------------------------------------ LitGPT


def _litgpt(state: dict[str, Tensor], settings: Path) -> Any:
    """LitGPT's layers by the names of a base's family: a function of its architecture."""
    try:
        given = yaml.safe_load(settings.read_text())
        alpha, rank = float(given["lora_alpha"]), int(given["lora_r"])
        enabled = [bool(given[f"lora_{part}"]) for part in ("query", "key", "value")]
        if rank < 1 or not 0 < alpha < math.inf:
            raise ValueError(f"lora_r is {rank}, lora_alpha {alpha}")
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise AdapterError(
            f"{settings} does not say how the adapter was trained ({error})", "LitGPT writes it beside the weights"
        ) from error
    pairs = _pairs(state, settings.parent, (".lora_A", ".lora_B"))
    fit = sum(enabled) or 1
    for layer, (a, b) in pairs.items():
        if b.shape[1] != rank or a.shape[0] not in (rank, fit * rank):
            raise AdapterError(
                f"{settings} says rank {rank}, {layer} has {b.shape[1]}", "LitGPT writes it beside the weights"
            )

    def by_family(arch: Architecture) -> Updates:
        names, found = arch.names, {}
        for layer, (a, b) in pairs.items():
            update = Update(a, b, alpha / rank)
            numbered = re.fullmatch(r"transformer\.h\.(\d+)\.(attn|mlp)\.(\w+)", layer)
            if layer == "lm_head":
                found[names.head] = update
                continue
            if numbered is None:
                raise AdapterError(f"LitGPT's layer {layer!r} is not known", "files of LitGPT 0.5 and later are read")
            number, part, name = int(numbered[1]), numbered[2], numbered[3]
            at = f"{names.layers}.{number}.{names.attention if part == 'attn' else 'mlp'}"
            if name == "qkv":
                spec = arch.specs[number]
                outputs = [spec.q_size, spec.kv_size, spec.kv_size]
                rows = iter(b.split([n for n, on in zip(outputs, enabled, strict=True) if on]))
                chunks = iter(a.split(rank))
                pieces = [replace(update, a=next(chunks), b=next(rows)) if on else None for on in enabled]
                if len(names.qkv) == 3:
                    found |= {f"{at}.{n}": p for n, p in zip(names.qkv, pieces, strict=True) if p is not None}
                else:
                    fused = _fused(pieces, outputs)
                    if arch.interleaved:  # q, k and v of a head lie together
                        b = fused.b.unflatten(0, (3, spec.heads, spec.head_dim)).transpose(0, 1).flatten(0, 2)
                        fused = replace(fused, b=b)
                    found[f"{at}.{names.qkv[0]}"] = fused
            elif part == "attn" or name == "proj":
                found[f"{at}.{names.out if part == 'attn' else names.down}"] = update
            else:
                found[f"{at}.{name}"] = update  # joined or renamed below
        return _mlp(found, arch)

    return by_family


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
            renamed[f"{parent}.{up[0]}"] = _fused([update, found[f"{parent}.fc_2"]], [arch.inner, arch.inner])
    return renamed


# ------------------------------------------------------------------------------------------------ ours


def _config(updates: Updates) -> LoraConfig:
    """The commonest rank and alpha, and patterns for the others."""
    ranks = {path: update.rank for path, update in updates.items()}
    alphas = {path: update.scaling * update.rank for path, update in updates.items()}
    rank, alpha = Counter(ranks.values()).most_common(1)[0][0], Counter(alphas.values()).most_common(1)[0][0]
    return LoraConfig(
        rank=rank,
        alpha=alpha,
        variant="dora" if any(update.magnitude is not None for update in updates.values()) else "lora",
        target_modules=tuple(updates),
        rank_pattern={re.escape(path): each for path, each in ranks.items() if each != rank},
        alpha_pattern={re.escape(path): each for path, each in alphas.items() if each != alpha},
    )


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


JOB = Job.of(convert)
