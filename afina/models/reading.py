"""Reads a decoder-only model from a source on this disk: into Afina's own decoder where that knows its family, else
into transformers' class."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from afina.core.errors import BaseModelError, reading
from afina.core.files import read_json
from afina.engine.architecture import Architecture, Unsupported
from afina.engine.blocks import Blocks, Quantiser, quantiser_for
from afina.engine.decoder import Decoder
from afina.engine.families import architecture_of
from afina.engine.joined_weights import weight_OI
from afina.engine.ops import Ops
from afina.models import tokenizer
from afina.models.formats import gguf_models, safetensors_files
from afina.models.formats.checks import check_numbers
from afina.models.formats.gguf import read_gguf
from afina.models.formats.number_formats import quantised_by
from afina.models.model import Quantize
from afina.models.skeleton import causal_skeleton, check_fits, config_of, decoder_skeleton
from afina.models.sources.source import Source
from afina.models.through_transformers import pretrained, quiet
from afina.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class ReadModel:
    """A module with its tokenizer. `fallback_reason` says why it is of a class of transformers, where it is; `note`
    what is unusual about the files."""

    module: Any
    tokenizer: Tokenizer
    fallback_reason: str | None = None
    note: str = ""


def read_causal(
    source: Source, dtype: torch.dtype, ops: Ops, quantize: Quantize | None, device: torch.device
) -> ReadModel:
    """The model of `source` with its weights in `dtype`, or quantised as they are read. Those of Afina's decoder are
    read one by one onto `device`; transformers reads all of them into the host's memory first. Raises
    `BaseModelError`."""
    return (_from_gguf if source.is_gguf else _from_folder)(source, dtype, ops, quantize, device)


def chat_tokenizer(source: Source) -> Tokenizer:
    """The tokenizer of a decoder-only model. Raises `BaseModelError`."""
    if source.is_gguf:
        return tokenizer.from_gguf(read_gguf(source.path), source.path)
    return tokenizer.from_folder(source.path, _stop_ids(source))


def _stop_ids(source: Source) -> list[int]:
    """The tokens at which the model's own generation settings stop."""
    from transformers import GenerationConfig

    if not (source.path / "generation_config.json").is_file():
        return []
    path = source.path / "generation_config.json"
    with reading(f"{path} cannot be read", BaseModelError, "download the base again, or delete that file"):
        read_json(path)
        end = GenerationConfig.from_pretrained(source.path, local_files_only=True).eos_token_id
        return [end] if isinstance(end, int) else [int(each) for each in end or ()]


def _from_folder(
    source: Source, dtype: torch.dtype, ops: Ops, quantize: Quantize | None, device: torch.device
) -> ReadModel:
    config = config_of(source)
    tok = chat_tokenizer(source)
    try:
        arch = architecture_of(config)
    except Unsupported as reason:
        return ReadModel(_in_transformers(source, config, dtype), tok, str(reason))
    module = decoder_skeleton(config, arch, ops)
    if quantised_by(source.path):
        other = _in_transformers(source, config, dtype).to(dtype)
        return ReadModel(_filled(source, module, other.state_dict()), tok)
    quantiser = _quantiser(module, quantize, dtype)
    weights = safetensors_files.read_weights(source.path, arch, dtype, quantiser, device)
    filled = _filled(source, module, weights)
    own = "its files hold an output head of their own, which is used, though config.json ties it to the embeddings"
    return ReadModel(filled, tok, note=own if arch.tied and not filled.arch.tied else "")


def _in_transformers(source: Source, config: Any, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    check_fits(causal_skeleton(config), source)
    module, missing = pretrained(AutoModelForCausalLM, source, dtype)
    if missing:
        raise BaseModelError(f"{source.path}: weights are missing: {', '.join(missing[:3])} …")
    return module


def _quantiser(module: Decoder, quantize: Quantize | None, dtype: torch.dtype) -> Quantiser:
    """What becomes of each weight as it is read: those that stay as they are go where joined products read them."""
    return quantiser_for(module, quantize, dtype) if quantize else module.placing()


def _from_gguf(
    source: Source, dtype: torch.dtype, ops: Ops, quantize: Quantize | None, device: torch.device
) -> ReadModel:
    keep = quantize == "keep"
    file = read_gguf(source.path)
    tok = tokenizer.from_gguf(file, source.path)
    config = gguf_models.read_config(file)
    if config:
        module = decoder_skeleton(config, architecture_of(config), ops)
        quantiser = _quantiser(module, quantize, dtype)
        weights = gguf_models.read_weights(file, config, module.state_dict(), dtype, quantiser, keep, device)
        if keep and not any(isinstance(weight, Blocks) for weight in weights.values()):
            raise BaseModelError(f"--quantize keep: {source.path} contains no blocks", "use --quantize nf4 or int8")
        return ReadModel(_filled(source, module, weights), tok)
    name = gguf_models.architecture_name(file)
    if keep:
        raise BaseModelError(f"--quantize keep: architecture {name!r} is read through transformers", "leave it out")
    other = _gguf_in_transformers(source, name, dtype)
    try:
        arch: Architecture = architecture_of(other.config)
    except Unsupported as reason:
        return ReadModel(other, tok, str(reason))
    return ReadModel(_filled(source, decoder_skeleton(other.config, arch, ops), other.state_dict()), tok)


def _gguf_in_transformers(source: Source, architecture: str | None, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    what = f"{source.path}: architecture {architecture!r} is not supported"
    with reading(what, BaseModelError, "use the model's folder of *.safetensors files"), quiet():
        module, info = AutoModelForCausalLM.from_pretrained(
            source.path.parent,
            gguf_file=source.path.name,
            dtype=dtype,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    lost = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if lost:
        raise BaseModelError(
            f"{source.path}: transformers does not find the weights of {', '.join(lost[:3])} in it",
            "use the model's folder of *.safetensors files",
        )
    check_numbers(source.path, dict(module.named_parameters()))
    return module


def stored_dtype(path: Path) -> torch.dtype:
    """The dtype in which a folder or a GGUF file holds most of its weights. Raises `BaseModelError`."""
    return read_gguf(path).stored_dtype() if path.suffix == ".gguf" else safetensors_files.stored_dtype(path)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Blocks) and isinstance(other, Blocks):
        one, other = one.data, other.data
    return isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and torch.equal(one, other)


def _filled(source: Source, module: Decoder, weights: Mapping[str, torch.Tensor | Blocks]) -> Decoder:
    """Our decoder, on the meta device before, with the `weights`, by transformers' names."""
    needed = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    if module.arch.tied:
        head, embedding = f"{module.arch.names.head}.weight", f"{module.arch.names.embedding}.weight"
        if head in weights and not _equal(weights[head], weights.get(embedding)):
            module.untie()  # as transformers: files that hold another head mean it, whatever config.json says
        else:
            weights = {name: value for name, value in weights.items() if name != head}
            del needed[head]
    in_blocks = {name: value for name, value in weights.items() if isinstance(value, Blocks)}
    for name, blocks in in_blocks.items():
        path = name.removesuffix(".weight")
        if name in needed and weight_OI(module.get_submodule(path)).shape == blocks.shape:
            module.take_blocks(path, blocks)
            del needed[name]
    weights = {name: value for name, value in weights.items() if name not in in_blocks or name in needed}
    problems = [f"{name} is missing" for name in needed if name not in weights]
    problems += [f"{name} is not used" for name in weights if name not in needed]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, config.json needs {shape}"
        for name, shape in needed.items()
        if name in weights and tuple(weights[name].shape) != shape
    ]
    if problems:
        more = f" … and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise BaseModelError(
            f"{source.path}: the weights do not fit: {'; '.join(problems[:3])}{more}",
            "download it again"
            if source.is_gguf
            else "the folder needs complete *.safetensors files that fit its config.json",
        )
    module.load_state_dict(dict(weights), strict=False, assign=True)
    module.tie()
    return module
