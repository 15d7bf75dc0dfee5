"""Llama, SmolLM and Mistral. llama.cpp writes all of them as llama."""

from typing import Any

from torch import Tensor

from afina.engine.families._family import GROUPED_SIZES, HEAD_DIM, Family, GgufLayout, llama_like


def _restored(weight: Tensor, name: str, config: Any) -> Tensor:
    """In the file, rows of q and k are in interleaved rotary order."""
    if ".attn_q." not in name and ".attn_k." not in name:
        return weight
    heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
    return weight.view(heads, -1, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


FAMILY = (
    Family("llama", llama_like, GgufLayout("llama", GROUPED_SIZES | HEAD_DIM, restored=_restored)),
    Family("mistral", llama_like),
)
