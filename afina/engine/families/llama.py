"""Llama, SmolLM and Mistral. llama.cpp writes all of them as llama."""

from typing import Any

import torch
from torch import Tensor

from afina.engine.families._family import GROUPED_SIZES, HEAD_DIM, Family, GgufLayout, Stored, llama_like


def _interleaved(heads: int, config: Any) -> Tensor:
    """In the file, the two halves of what is rotated lie pair by pair."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return torch.arange(heads * head_dim).view(heads, 2, -1).transpose(1, 2).flatten()


def _rows_of_q(config: Any) -> Tensor:
    return _interleaved(config.num_attention_heads, config)


def _rows_of_k(config: Any) -> Tensor:
    return _interleaved(config.num_key_value_heads or config.num_attention_heads, config)


_LAYOUT = GgufLayout(
    "llama", GROUPED_SIZES | HEAD_DIM, stored={"attn_q": Stored(_rows_of_q), "attn_k": Stored(_rows_of_k)}
)
FAMILY = (Family("llama", llama_like, _LAYOUT), Family("mistral", llama_like, _LAYOUT))
