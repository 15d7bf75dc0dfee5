"""Bytes that a model takes, by its shapes alone: what is true of the module on the meta device is true of the loaded one.

T tokens of a pass, C channels, V words.
"""

from collections.abc import Sequence
from typing import Any

import torch

from afina.core.device import LARGE_BLOCK
from afina.core.layers import is_conv1d
from afina.core.machine import memory_free
from afina.engine import ops
from afina.engine.blocks import NF4_BLOCK, linear_layers
from afina.engine.decoder import Decoder
from afina.models.causal import EAGER_TOKENS
from afina.models.model import Quantize

# So many times as much is kept by our decoder without fused kernels, and by transformers' models (counted by autograd's hooks: BERT 0.9,
# ModernBERT, T5 and GPT-J 1.3 to 1.5).
_UNFUSED, _TRANSFORMERS = 1.5, 1.4
_SCORES = 3  # tensors of each head's scores that plain attention keeps
_INT8_BLOCK = 32


def element_size(dtype: torch.dtype) -> int:
    return torch.finfo(dtype).bits // 8


def activation_bytes(module: Any, dtype: torch.dtype, longest: int, fused: bool = True) -> int:
    """Bytes a token that the backward pass of a whole model needs kept, without recomputation, in rows of `longest` tokens."""
    kept = sum(_kept(module, dtype, longest))
    return kept if fused or not isinstance(module, Decoder) else round(_UNFUSED * kept)


def heap_bytes(module: Any, dtype: torch.dtype, longest: int, tokens: int) -> int:
    """Those of a pass over so many tokens that lie in small blocks, which do not go back to the system one by one."""
    return sum(each * tokens for each in _kept(module, dtype, longest) if each * tokens < LARGE_BLOCK)


def _kept(module: Any, dtype: torch.dtype, longest: int) -> list[int]:
    """Bytes a token of each tensor that the backward pass needs.

    Of each layer: the residual stream before each norm and what the norm gives, queries, keys and values, the attention's
    output and its log-sums, the MLP's inner values before and after the activation. Of models of transformers the scores too.
    """
    size = element_size(dtype)
    if not isinstance(module, Decoder):
        width, inner, layers = _sizes(module)
        heads = int(getattr(module.config, "num_attention_heads", 1))
        plain = (
            longest if _head(module) is None else min(longest, EAGER_TOKENS)
        )  # of longer rows a model that writes keeps no scores
        scores = _SCORES * [size * heads * plain]
        return layers * (8 * [round(_TRANSFORMERS * size * width)] + 3 * [round(_TRANSFORMERS * size * inner)] + scores)
    arch, kept = module.arch, []
    for spec in arch.specs:
        kept += 4 * [size * arch.hidden]
        kept += [size * (spec.qk_size + spec.kv_size), size * spec.q_size, 4 * spec.heads]
        kept += [size * arch.inner * (2 if arch.gated else 1), size * arch.inner]
    return kept


def passing_bytes(module: Any, dtype: torch.dtype) -> int:
    """Bytes a token that are held at one time within a layer of a pass that keeps nothing."""
    if isinstance(module, Decoder):
        arch, spec = module.arch, module.arch.specs[0]
        return element_size(dtype) * (4 * arch.hidden + 2 * spec.qk_size + spec.q_size + 3 * arch.inner)
    width, inner, _ = _sizes(module)
    return 4 * (8 * width + 3 * inner)


def _sizes(module: Any) -> tuple[int, int, int]:
    """Width, inner width and layers of a model of transformers."""
    config = module.config
    inner = getattr(config, "intermediate_size", None) or getattr(config, "d_ff", None) or 4 * config.hidden_size
    return int(config.hidden_size), int(inner), int(config.num_hidden_layers)


def layer_input_bytes(module: Any, dtype: torch.dtype) -> int:
    """Bytes a token that are kept where activations are computed twice: the two summands of each layer's input."""
    return 2 * element_size(dtype) * int(module.config.hidden_size) * int(module.config.num_hidden_layers)


def cache_bytes(module: Any, dtype: torch.dtype) -> int:
    """Bytes a token of a text in the making: its keys and values in every layer."""
    if isinstance(module, Decoder):
        return sum(2 * spec.kv_size * element_size(dtype) for spec in module.arch.specs)
    return 2 * element_size(dtype) * int(module.config.num_hidden_layers) * int(module.config.hidden_size)


def logit_bytes(module: Any, dtype: torch.dtype, labelled: int) -> int:
    """Bytes of the logits that exist at one time in training, at `labelled` positions a pass."""
    if not isinstance(module, Decoder):
        return labelled * 8 * words(module)  # in fp32, and their gradient
    rows = min(ops.CHUNK, -(-labelled // ops.ROUND) * ops.ROUND)
    return rows * words(module) * element_size(dtype)


def words(module: Any) -> int:
    """What the output head chooses among: words, or a classifier's classes."""
    head = _head(module)
    return int(head.weight.shape[0]) if head is not None else int(getattr(module.config, "num_labels", 2))


def _head(module: Any) -> Any:
    """That over the words; None of a classifier."""
    return module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None


def weight_bytes(module: Any, dtype: torch.dtype, quantize: Quantize | None, heads: Sequence[str] = ()) -> int:
    """Bytes of the frozen weights, with linear layers in few bits where that is wanted (as `quantise_linears` does)."""
    total: int = sum(p.numel() for p in module.parameters()) * element_size(dtype)
    if quantize is None:
        return total
    largest = 0
    for layer in quantised_layers(module, quantize, heads):
        rows, columns = layer.weight.shape if not is_conv1d(layer) else layer.weight.shape[::-1]
        numbers = rows * columns
        total -= numbers * element_size(dtype)
        total += numbers // 2 + rows * (8 + columns // NF4_BLOCK) if quantize == "nf4" else numbers * 34 // _INT8_BLOCK
        largest = max(largest, numbers)
    return total + 2 * largest * element_size(dtype)  # the scratch in which layers of one input are written out


def quantised_layers(module: Any, quantize: Quantize, heads: Sequence[str] = ()) -> list[Any]:
    """The layers that are kept in few bits: not a classifier's `heads`, nor those whose rows do not fill whole blocks."""
    block = NF4_BLOCK if quantize == "nf4" else _INT8_BLOCK
    return [
        layer
        for layer in linear_layers(module, heads).values()
        if layer.weight.shape[0 if is_conv1d(layer) else 1] % block == 0
    ]


def free_bytes(device: torch.device) -> int:
    """Memory that could be taken now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return memory_free()
