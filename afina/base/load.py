"""One call from a name to a frozen model that is ready to adapt."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from afina.base import gguf, sources, tokenizer
from afina.base.model import CausalModel, TransformersModel
from afina.base.sources import Source
from afina.base.tokenizer import Tokenizer
from afina.core.device import default_cache, pick_device, pick_dtype
from afina.core.errors import BaseModelError


@dataclass(frozen=True)
class Facts:
    """The card of a base model. `sha256` is of its weight files; `hub_id` is None where it did not come from the hub."""

    name: str
    kind: str
    architecture: str
    layers: int
    hidden_size: int
    vocabulary: int
    parameters: int
    context_length: int
    licence: str | None
    revision: str | None
    hub_id: str | None
    sha256: str
    path: str

    def card(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Base:
    """A frozen model with its tokenizer and facts; `dtype` is what it computes in, for `dtype_reason`."""

    model: CausalModel
    tokenizer: Tokenizer
    facts: Facts
    dtype: torch.dtype
    dtype_reason: str


def load_base(
    name: str = "starter",
    *,
    revision: str | None = None,
    precision: str = "auto",
    device: str | None = None,
    cache_dir: Path | None = None,
) -> Base:
    """Loads the base model called `name`: a catalogue name, hub id, folder or `.gguf` file (see `locate`).

    `precision` is bf16, fp32 or auto (what the device computes faster, measured once). All parameters are frozen and
    the module is in evaluation mode. Raises `BaseModelError`.
    """
    cache = cache_dir or default_cache()
    source = sources.locate(name, revision, cache)
    place = pick_device(device)
    dtype, reason = pick_dtype(precision, place, cache)
    if source.is_gguf:
        module, tok = _from_gguf(source, dtype)
    else:
        module, tok = _from_folder(source, dtype)
    if tok.pad_id >= module.get_input_embeddings().num_embeddings:
        raise BaseModelError(
            f"base {name!r}: the tokenizer has more words than the model", "choose a base whose files agree"
        )
    module.requires_grad_(False).eval().to(place)
    return Base(TransformersModel(module), tok, _facts(source, module), dtype, reason)


def describe(name: str, *, revision: str | None = None, cache_dir: Path | None = None) -> Facts:
    """The facts of a base without loading its weights (fetched first if it is not on this disk)."""
    source = sources.locate(name, revision, cache_dir or default_cache())
    with torch.device("meta"):
        return _facts(source, _empty(_config(source)))


def _config(source: Source) -> Any:
    from transformers import AutoConfig, LlamaConfig

    if source.is_gguf:
        file = gguf.GGUF(source.path)
        if gguf.is_plain_llama(file):
            return LlamaConfig(**gguf.llama_config(file))
        return AutoConfig.from_pretrained(source.path.parent, gguf_file=source.path.name)
    try:
        return AutoConfig.from_pretrained(source.path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(
            f"{source.path}/config.json: {str(error).splitlines()[0]}", "choose another base"
        ) from error


def _empty(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise BaseModelError(
            f"models of type {config.model_type!r} do not generate text", "choose a decoder-only (causal) base"
        ) from error


def _from_gguf(source: Source, dtype: torch.dtype) -> tuple[Any, Tokenizer]:
    from transformers import AutoModelForCausalLM

    file = gguf.GGUF(source.path)
    tok = tokenizer.from_gguf(file, source.path)
    if not gguf.is_plain_llama(file):
        try:
            with _quiet():
                module = AutoModelForCausalLM.from_pretrained(
                    source.path.parent, gguf_file=source.path.name, dtype=dtype
                )
        except (ValueError, KeyError, OSError) as error:
            architecture = file.metadata.get("general.architecture")
            raise BaseModelError(f"{source.path}: architecture {architecture!r} is not supported ({error})") from error
        return module, tok
    with torch.device("meta"):
        module = _empty(_config(source))
    weights = gguf.llama_weights(file, dtype)
    _, unexpected = module.load_state_dict(weights, strict=False, assign=True)
    module.tie_weights()
    absent = [name for name, value in module.named_parameters() if value.is_meta]
    if unexpected or absent:
        raise BaseModelError(f"{source.path} lacks {absent[:3]}, has too many {unexpected[:3]}", "download it again")
    _materialise_buffers(module)
    return module, tok


def _materialise_buffers(module: nn.Module) -> None:
    """Buffers that are computed, not stored (rotary frequencies), are made anew outside the meta device."""
    for child in list(module.modules()):
        if any(buffer.is_meta for buffer in child.buffers(recurse=False)):
            fresh = type(child)(child.config)
            for name, buffer in fresh.named_buffers(recurse=False):
                child.register_buffer(name, buffer, persistent=False)


def _from_folder(source: Source, dtype: torch.dtype) -> tuple[Any, Tokenizer]:
    from transformers import AutoModelForCausalLM, GenerationConfig

    config = _config(source)
    stops: list[int] = []
    if (source.path / "generation_config.json").is_file():
        end = GenerationConfig.from_pretrained(source.path).eos_token_id
        stops = [end] if isinstance(end, int) else list(end or [])
    tok = tokenizer.from_folder(source.path, stops)
    with torch.device("meta"):
        _empty(config)  # says what is wrong with an architecture before its weights are read
    try:
        with _quiet():
            module, info = AutoModelForCausalLM.from_pretrained(
                source.path,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BaseModelError(
            f"{source.path}: the weights cannot be loaded ({str(error).splitlines()[0][:200]})",
            "the folder needs whole *.safetensors files that fit its config.json",
        ) from error
    if info["missing_keys"]:
        raise BaseModelError(f"{source.path}: weights are missing: {', '.join(sorted(info['missing_keys'])[:3])} …")
    return module, tok


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars, which would run into our own lines."""
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()


def _facts(source: Source, module: Any) -> Facts:
    config = module.config
    return Facts(
        name=source.name,
        kind=source.kind,
        architecture=config.model_type,
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        vocabulary=module.get_input_embeddings().num_embeddings,
        parameters=sum(p.numel() for p in module.parameters()),
        context_length=int(getattr(config, "max_position_embeddings", 0) or 2048),
        licence=source.licence,
        revision=source.revision,
        hub_id=source.hub_id,
        sha256=source.digest(),
        path=str(source.path),
    )
