"""Rotary positions in a GGUF file, and as transformers' rotary parameters: one table for reading and for writing.

Keys are those of the file after the architecture's name. Scalings by factors that differ from frequency to frequency
are tensors of the file, (rotary_dim / 2).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import log
from typing import Any

import torch
from torch import Tensor

from afina.core.errors import BaseModelError
from afina.engine.architecture import Architecture
from afina.models.formats.gguf import GGUF

LLAMA_3, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
ROPE_TENSORS = (LLAMA_3, LONG, SHORT)
# What the file does not hold of Llama 3.1's scaling: all models with it have the same.
_LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA_3_CONTEXT = 8192
_TYPE, _FACTOR, _CONTEXT = "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"
_ATTENTION = "rope.scaling.attn_factor"
_YARN = {"beta_fast": "rope.scaling.yarn_beta_fast", "beta_slow": "rope.scaling.yarn_beta_slow"}


@dataclass(frozen=True)
class RopeInFile:
    """Metadata, without the architecture's name, and tensors; `notes` say what a program that reads them does
    otherwise."""

    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def is_read(metadata: Mapping[str, Any]) -> bool:
    """Whether the scaling that `metadata` name is one that is read here."""
    return metadata.get(_TYPE, "linear") in ("none", "linear", "yarn", "longrope")


def read_rope(file: GGUF, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' rotary parameters of a model with these metadata, without the architecture's name."""
    heads, hidden = metadata["attention.head_count"], metadata["embedding_length"]
    head_dim = metadata.get("attention.key_length", hidden // heads)
    rope = {"rope_type": "default", "rope_theta": metadata.get("rope.freq_base", 10000.0)}
    kind, factor = metadata.get(_TYPE, "linear"), metadata.get(_FACTOR, 1.0)
    context = metadata.get(_CONTEXT, metadata.get("context_length"))
    if LLAMA_3 in file.tensors:
        original = metadata.get(_CONTEXT, _LLAMA_3_CONTEXT)
        rope |= _LLAMA_3 | {"rope_type": "llama3", "original_max_position_embeddings": original}
        rope["factor"] = float(file.tensor(LLAMA_3).max())
    elif LONG in file.tensors:
        long, short = (file.tensor(name).tolist() for name in (LONG, SHORT))
        rope |= {"rope_type": "longrope", "long_factor": long, "short_factor": short}
        rope |= {"original_max_position_embeddings": context, "attention_factor": metadata.get(_ATTENTION, 1.0)}
    elif kind == "yarn":
        rope |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": context}
        rope |= {name: metadata[key] for name, key in _YARN.items() if key in metadata}
        if _ATTENTION in metadata:
            rope["attention_factor"] = metadata[_ATTENTION] * _usual_attention(factor)
    elif kind == "linear" and factor != 1.0:
        rope |= {"rope_type": "linear", "factor": factor}
    if "rope.dimension_count" in metadata:
        rope["partial_rotary_factor"] = metadata["rope.dimension_count"] / head_dim
    return rope


def rope_in_file(config: Any, arch: Architecture) -> RopeInFile:
    """What a file says of the rotations of a model. Raises `BaseModelError` where GGUF has no word for them."""
    if not arch.ropes:
        return RopeInFile()
    parameters = config.rope_parameters
    metadata: dict[str, Any] = {"rope.dimension_count": arch.specs[0].rotary_dim}
    if "sliding_attention" in parameters:
        metadata["rope.freq_base_swa"] = float(parameters["sliding_attention"]["rope_theta"])
        parameters = parameters["full_attention"]
    metadata["rope.freq_base"] = float(parameters["rope_theta"])
    kind = parameters.get("rope_type", "default")
    if kind == "default":
        return RopeInFile(metadata)
    if kind == "llama3":
        original = parameters["original_max_position_embeddings"]
        if original != _LLAMA_3_CONTEXT:
            metadata[_CONTEXT] = original
        exponents = torch.arange(0, arch.specs[0].rotary_dim, 2, dtype=torch.float32) / arch.specs[0].rotary_dim
        plain = 1.0 / parameters["rope_theta"] ** exponents
        return RopeInFile(metadata, {LLAMA_3: plain / arch.ropes[0].frequencies})
    if kind == "longrope":
        metadata |= {_CONTEXT: parameters["original_max_position_embeddings"], _ATTENTION: arch.ropes[0].factor}
        tensors = {LONG: torch.tensor(parameters["long_factor"]), SHORT: torch.tensor(parameters["short_factor"])}
        note = (
            f"llama.cpp takes the rotations of long texts for all of them where its context (-c) is larger than "
            f"{metadata[_CONTEXT]:,} tokens; Afina takes them for the texts that are longer"
        )
        return RopeInFile(metadata, tensors, (note,))
    if kind == "linear":
        return RopeInFile(metadata | {_TYPE: "linear", _FACTOR: float(parameters["factor"])})
    if kind == "yarn":
        factor = float(parameters["factor"])
        metadata |= {_TYPE: "yarn", _FACTOR: factor, _CONTEXT: parameters["original_max_position_embeddings"]}
        metadata |= {key: float(parameters[name]) for name, key in _YARN.items() if parameters.get(name) is not None}
        attention = arch.ropes[0].factor / _usual_attention(factor)
        return RopeInFile(metadata | ({_ATTENTION: attention} if abs(attention - 1) > 1e-6 else {}))
    raise BaseModelError(
        f"a GGUF file cannot hold rotary positions that are scaled as {kind!r}", "export the merged safetensors"
    )


def _usual_attention(factor: float) -> float:
    """What YaRN multiplies cosines and sines by (Peng et al. 2023, https://arxiv.org/abs/2309.00071, section 3.4)."""
    return 0.1 * log(factor) + 1.0 if factor > 1 else 1.0
