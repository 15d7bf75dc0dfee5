"""Models in transformers' own classes: read from a folder, made from Afina's decoder, and written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from afina.core.errors import BaseModelError, reading
from afina.core.files import storing
from afina.engine.decoder import Decoder
from afina.models.formats.checks import check_numbers
from afina.models.formats.number_formats import UNPACKED, quantised_by
from afina.models.skeleton import causal_skeleton
from afina.models.sources.source import Source

SHARD = "5GB"  # the most that a file of weights has


def pretrained(auto_class: Any, source: Source, dtype: torch.dtype, **extra: Any) -> tuple[Any, list[str]]:
    """The model of a folder in the class `auto_class` of transformers, and the names of the weights that the folder
    lacks.

    Raises `BaseModelError`.
    """
    import transformers

    method = quantised_by(source.path)
    if method in UNPACKED:
        extra["quantization_config"] = getattr(transformers, UNPACKED[method][0])(dequantize=True)
    remedy = "the folder needs complete *.safetensors files that fit its config.json"
    with reading(f"{source.path}: the weights cannot be loaded", BaseModelError, remedy), quiet():
        module, info = auto_class.from_pretrained(
            source.path,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=None,
            local_files_only=True,
            output_loading_info=True,
            **extra,
        )
    if method in UNPACKED:
        module.__dict__.pop("_weight_conversions", None)  # by which its weights would be saved under packed ones' names
    check_numbers(source.path, dict(module.named_parameters()))
    return module, sorted(info["missing_keys"])


def as_transformers(module: Any, dtype: torch.dtype | None = None) -> Any:
    """The model in `transformers`' own class, to save it for other programs, or to compare; weights in `dtype`, if one
    is given.

    That is `module` itself, rounded in place, where it is of such a class, else a new one with copies of the weights.
    """
    if not isinstance(module, Decoder):
        if dtype:
            cast(module, dtype)
        return module
    other = causal_skeleton(module.config)
    stored = module.state_dict().items()
    state = {name: value.detach().to(dtype or value.dtype, copy=True).contiguous() for name, value in stored}
    other.load_state_dict(state, strict=True, assign=True)
    other.tie_weights()
    _materialise_buffers(other)
    return other.requires_grad_(False).eval().to(next(module.parameters()).device)


def save_model(module: Any, folder: Path, dtype: torch.dtype) -> None:
    """Writes the model to `folder`, in transformers' format, its weights in `dtype` (see `as_transformers`) and in
    files of 5 GB at most. Raises `OutputError`."""
    other = as_transformers(module, dtype)
    other.config.__dict__.pop("quantization_config", None)  # of the files that it was unpacked from
    with storing(folder), quiet():
        folder.mkdir(parents=True, exist_ok=True)
        other.save_pretrained(folder, max_shard_size=SHARD)


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Rounds all parameters to `dtype`, in place; layers that share one still do. Buffers, such as rotary frequencies,
    stay as they are."""
    known: dict[int, nn.Parameter] = {}
    for owner in list(module.modules()):
        for name, weight in owner._parameters.items():
            if weight is not None:
                known.setdefault(id(weight), nn.Parameter(weight.detach().to(dtype), requires_grad=False))
                owner._parameters[name] = known[id(weight)]


def _materialise_buffers(module: Any) -> None:
    """Recomputes, outside the meta device, buffers that no file holds: rotary frequencies, the scale of Gemma's
    embeddings."""
    for child in list(module.modules()):
        if not any(buffer.is_meta for buffer in child.buffers(recurse=False)):
            continue
        if hasattr(child, "scalar_embed_scale"):
            child.register_buffer("embed_scale", torch.tensor(child.scalar_embed_scale), persistent=False)
            continue
        fresh = type(child)(child.config)
        for name, buffer in fresh.named_buffers(recurse=False):
            child.register_buffer(name, buffer, persistent=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences transformers' progress bars and reports, which would run into our own lines."""
    from transformers.utils import logging

    before, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if before:
            logging.enable_progress_bar()
