"""Bytes that a model takes, by its shapes alone: a module on the meta device gives the same numbers as a loaded one."""

from collections.abc import Sequence
from typing import Any

import torch

from afina.core.device import LARGE_BLOCK, memory_free, rows_within
from afina.core.layers import is_conv1d
from afina.engine import ops
from afina.engine.blocks import NF4_BLOCK, linear_layers
from afina.engine.decoder import Decoder
from afina.models.causal import EAGER_TOKENS
from afina.models.model import Quantize

# Activations saved by our decoder without fused kernels, and by transformers' models, as multiples of those with fused
# kernels (counted by autograd's hooks: BERT 0.9, ModernBERT, T5 and GPT-J 1.3 to 1.5).
_UNFUSED, _TRANSFORMERS = 1.5, 1.4
_SCORES = 3  # tensors of each head's scores that eager attention saves
_INT8_BLOCK = 32


def element_size(dtype: torch.dtype) -> int:
    return torch.finfo(dtype).bits // 8


def activation_bytes(module: Any, dtype: torch.dtype, longest: int, fused: bool = True) -> int:
    """Bytes per token of the activations saved for the backward pass, without checkpointing, in rows of `longest`
    tokens."""
    saved = sum(_saved(module, dtype, longest))
    return saved if fused or not isinstance(module, Decoder) else round(_UNFUSED * saved)


def heap_bytes(module: Any, dtype: torch.dtype, longest: int, tokens: int) -> int:
    """Those of a micro-batch of so many tokens that are small enough not to go back to the system once they are
    freed."""
    return sum(each * tokens for each in _saved(module, dtype, longest) if each * tokens < LARGE_BLOCK)


def _saved(module: Any, dtype: torch.dtype, longest: int) -> list[int]:
    """Bytes per token of each tensor that the backward pass needs.

    Of each layer: the residual stream before each norm and the norm's output, queries, keys and values, the
    attention's output and its log-sums, the MLP's inner values before and after the activation. Of transformers'
    models, the scores too.
    """
    size = element_size(dtype)
    if not isinstance(module, Decoder):
        width, inner, layers = _sizes(module)
        heads = int(getattr(module.config, "num_attention_heads", 1))
        # In longer rows, a model that writes text has fused attention, which saves no scores.
        columns = longest if _head(module) is None else min(longest, EAGER_TOKENS)
        scores = _SCORES * [size * heads * columns]
        return layers * (8 * [round(_TRANSFORMERS * size * width)] + 3 * [round(_TRANSFORMERS * size * inner)] + scores)
    arch, saved = module.arch, []
    for spec in arch.specs:
        saved += 4 * [size * arch.hidden]
        saved += [size * (spec.qk_size + spec.kv_size), size * spec.q_size, 4 * spec.heads]
        saved += [size * arch.inner * (2 if arch.gated else 1), size * arch.inner]
    return saved


def working_bytes(module: Any, dtype: torch.dtype) -> int:
    """Bytes per token held at one time within a layer of a forward pass without gradients."""
    if isinstance(module, Decoder):
        arch, spec = module.arch, module.arch.specs[0]
        return element_size(dtype) * (4 * arch.hidden + 2 * spec.qk_size + spec.q_size + 3 * arch.inner)
    width, inner, _ = _sizes(module)
    return 4 * (8 * width + 3 * inner)


def attention_sum_bytes(module: Any) -> int:
    """At most, bytes per token that the processor's attention keeps for gradients of keys and values that several
    threads add to: two numbers for each of the queries'."""
    return max((8 * spec.q_size for spec in module.arch.specs), default=0) if isinstance(module, Decoder) else 0


def _sizes(module: Any) -> tuple[int, int, int]:
    """Width, inner width and layers of a model of transformers."""
    config = module.config
    inner = getattr(config, "intermediate_size", None) or getattr(config, "d_ff", None) or 4 * config.hidden_size
    return int(config.hidden_size), int(inner), int(config.num_hidden_layers)


def layer_input_bytes(module: Any, dtype: torch.dtype) -> int:
    """Bytes per token saved with activation checkpointing: the two summands of each layer's input."""
    return 2 * element_size(dtype) * int(module.config.hidden_size) * int(module.config.num_hidden_layers)


def cache_bytes(module: Any, dtype: torch.dtype) -> int:
    """Bytes per token of the KV cache: keys and values in every layer."""
    if isinstance(module, Decoder):
        return sum(2 * spec.kv_size * element_size(dtype) for spec in module.arch.specs)
    return 2 * element_size(dtype) * int(module.config.num_hidden_layers) * int(module.config.hidden_size)


def logit_bytes(module: Any, dtype: torch.dtype, labelled: int, free: int = 0) -> int:
    """Bytes of the logits that exist at one time in training, at `labelled` positions per micro-batch; more on a card
    with `free` bytes."""
    if not isinstance(module, Decoder):
        return labelled * 8 * output_size(module)  # in fp32, and their gradient
    row = output_size(module) * element_size(dtype)
    rows = min(rows_within(free, row, ops.CHUNK), ops.padded(labelled))
    return rows * row


def output_size(module: Any) -> int:
    """What the output head chooses among: tokens of the vocabulary, or a classifier's classes."""
    head = _head(module)
    return int(head.weight.shape[0]) if head is not None else int(getattr(module.config, "num_labels", 2))


def _head(module: Any) -> Any:
    """The output head over the vocabulary; None of a classifier."""
    return module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None


def weight_bytes(module: Any, dtype: torch.dtype, quantize: Quantize | None, heads: Sequence[str] = ()) -> int:
    """Bytes of the frozen weights, with linear layers quantised as `quantise_linears` does, where that is wanted."""
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
    return total + 2 * largest * element_size(dtype)  # the scratch into which layers of one input are dequantised


def quantised_layers(module: Any, quantize: Quantize, heads: Sequence[str] = ()) -> list[Any]:
    """The layers that are quantised: not a classifier's `heads`, nor those whose rows do not fill whole blocks."""
    block = NF4_BLOCK if quantize == "nf4" else _INT8_BLOCK
    return [
        layer
        for layer in linear_layers(module, heads).values()
        if layer.weight.shape[0 if is_conv1d(layer) else 1] % block == 0
    ]


def free_bytes(device: torch.device) -> int:
    """Bytes of memory that could be allocated now."""
    return memory_free(device)
