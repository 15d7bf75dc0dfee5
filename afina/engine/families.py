"""What the decoder must be like for a model of each family, read from its configuration as `transformers` parses it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from afina.core.errors import BaseModelError, brief
from afina.engine.ops import GATES, NO_NORM, NORM_ALL_HEADS, NORM_EACH_HEAD, AttentionSpec

# What libraries raise, each in its way, where the numbers of a configuration make no model.
NONSENSE = (ArithmeticError, AttributeError, LookupError, RuntimeError, StrictDataclassError, TypeError, ValueError)


@contextmanager
def making_a_model() -> Iterator[None]:
    """Of a configuration. Raises `BaseModelError` where it describes none."""
    try:
        yield
    except NONSENSE as error:
        raise BaseModelError(
            f"the base's configuration describes no model ({brief(error)})", "download the base again"
        ) from error


class Unsupported(Exception):
    """This decoder cannot be the model; the message says why. `transformers` can."""


@dataclass(frozen=True)
class Names:
    """Where transformers keeps each part; paths within the model, then within a layer."""

    embedding: str = "model.embed_tokens"
    positions: str | None = None
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    attention: str = "self_attn"
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    out: str = "o_proj"
    up: tuple[str, ...] = ("gate_proj", "up_proj")
    down: str = "down_proj"
    attention_norm: str | None = "input_layernorm"
    after_attention_norm: str | None = None
    mlp_norm: str | None = "post_attention_layernorm"
    after_mlp_norm: str | None = None


@dataclass(frozen=True)
class Rope:
    """Rotary frequencies (rotated / 2) and the factor on cosines and sines; others beyond `original` positions (longrope)."""

    frequencies: Tensor
    factor: float = 1.0
    original: int | None = None
    long_frequencies: Tensor | None = None


@dataclass(frozen=True)
class Architecture:
    """A decoder-only transformer, configured. `specs` and `ropes` are by layer; `ropes` is empty with learned positions."""

    model_type: str
    hidden: int
    inner: int
    words: int
    specs: tuple[AttentionSpec, ...]
    ropes: tuple[Rope, ...]
    activation: str
    eps: float
    tied: bool
    names: Names = field(default_factory=Names)
    gated: bool = True
    layer_norm: bool = False
    norm_offset: float = 0.0
    parallel: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    conv1d: bool = False
    interleaved: bool = False  # q, k and v of a head lie together in one joined layer
    learned_positions: int = 0
    embedding_scale: float | None = None
    logit_cap: float = 0.0


@making_a_model()
def architecture(config: Any) -> Architecture:
    """The architecture that a transformers configuration describes. Raises `Unsupported` and `BaseModelError`."""
    family = _FAMILIES.get(config.model_type)
    if family is None:
        raise Unsupported(f"architecture {config.model_type!r} has no fast path")
    found = family(config)
    if found.activation not in (GATES if found.gated else PLAIN_ACTIVATIONS):
        raise Unsupported(f"activation {found.activation!r} has no fast path")
    return found


PLAIN_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": torch.nn.functional.gelu,
    "gelu_new": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.nn.functional.relu,
}


def _llama_like(config: Any) -> Architecture:
    """Llama, SmolLM, Mistral and what differs from them by a flag."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    bias = bool(getattr(config, "attention_bias", False))
    layers = config.num_hidden_layers
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None) or 0
    ropes = {kind: _rope(config, width, kind) for kind in set(types or [""])}
    rotated = len(next(iter(ropes.values())).frequencies) * 2
    spec = AttentionSpec(heads, config.num_key_value_heads or heads, width, rotated, width**-0.5)
    kinds = types or [""] * layers
    specs = tuple(replace(spec, window=window if kind in ("", "sliding_attention") else 0) for kind in kinds)
    return Architecture(
        model_type=config.model_type,
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        words=config.vocab_size,
        specs=specs,
        ropes=tuple(ropes[kind] for kind in kinds),
        activation=getattr(config, "hidden_act", None) or config.hidden_activation,
        eps=config.rms_norm_eps,
        tied=config.tie_word_embeddings,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
    )


def _with_specs(found: Architecture, **changes: Any) -> Architecture:
    return replace(found, specs=tuple(replace(spec, **changes) for spec in found.specs))


def _qwen2(config: Any) -> Architecture:
    return replace(_llama_like(config), qkv_bias=True)


def _qwen3(config: Any) -> Architecture:
    return _with_specs(_llama_like(config), norm=NORM_EACH_HEAD, eps=config.rms_norm_eps)


def _olmo2(config: Any) -> Architecture:
    found = _with_specs(_llama_like(config), norm=NORM_ALL_HEADS, eps=config.rms_norm_eps)
    names = replace(
        found.names,
        attention_norm=None,
        after_attention_norm="post_attention_layernorm",
        mlp_norm=None,
        after_mlp_norm="post_feedforward_layernorm",
    )
    return replace(found, names=names)


def _gemma2(config: Any) -> Architecture:
    if getattr(config, "use_bidirectional_attention", False):
        raise Unsupported("bidirectional attention has no fast path")
    scale, cap = config.query_pre_attn_scalar**-0.5, config.attn_logit_softcapping or 0.0
    found = _with_specs(_llama_like(config), scale=scale, cap=cap)
    names = replace(
        found.names,
        after_attention_norm="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        after_mlp_norm="post_feedforward_layernorm",
    )
    return replace(
        found,
        names=names,
        norm_offset=1.0,
        embedding_scale=config.hidden_size**0.5,
        logit_cap=config.final_logit_softcapping or 0.0,
    )


def _gemma3(config: Any) -> Architecture:
    # Its configuration still has Gemma 2's cap on attention scores, which the model no longer applies.
    return _with_specs(_gemma2(config), norm=NORM_EACH_HEAD, eps=config.rms_norm_eps, cap=0.0)


def _phi3(config: Any) -> Architecture:
    found = _llama_like(config)
    return replace(found, names=replace(found.names, qkv=("qkv_proj",), up=("gate_up_proj",)))


def _gpt2(config: Any) -> Architecture:
    if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights or config.add_cross_attention:
        raise Unsupported("this variant of GPT-2's attention has no fast path")
    heads, width = config.n_head, config.n_embd // config.n_head
    return Architecture(
        model_type=config.model_type,
        hidden=config.n_embd,
        inner=config.n_inner or 4 * config.n_embd,
        words=config.vocab_size,
        specs=(AttentionSpec(heads, heads, width, 0, width**-0.5, NO_NORM),) * config.n_layer,
        ropes=(),
        activation=config.activation_function,
        eps=config.layer_norm_epsilon,
        tied=config.tie_word_embeddings,
        names=Names(
            embedding="transformer.wte",
            positions="transformer.wpe",
            layers="transformer.h",
            final_norm="transformer.ln_f",
            attention="attn",
            qkv=("c_attn",),
            out="c_proj",
            up=("c_fc",),
            down="c_proj",
            attention_norm="ln_1",
            mlp_norm="ln_2",
        ),
        gated=False,
        layer_norm=True,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        conv1d=True,
        learned_positions=config.n_positions,
    )


def _gpt_neox(config: Any) -> Architecture:
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    rope = _rope(config, width, "")
    spec = AttentionSpec(heads, heads, width, 2 * len(rope.frequencies), width**-0.5)
    return Architecture(
        model_type=config.model_type,
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        words=config.vocab_size,
        specs=(spec,) * config.num_hidden_layers,
        ropes=(rope,) * config.num_hidden_layers,
        activation=config.hidden_act,
        eps=config.layer_norm_eps,
        tied=config.tie_word_embeddings,
        names=Names(
            embedding="gpt_neox.embed_in",
            layers="gpt_neox.layers",
            final_norm="gpt_neox.final_layer_norm",
            attention="attention",
            qkv=("query_key_value",),
            out="dense",
            up=("dense_h_to_4h",),
            down="dense_4h_to_h",
        ),
        gated=False,
        layer_norm=True,
        parallel=config.use_parallel_residual,
        qkv_bias=config.attention_bias,
        out_bias=config.attention_bias,
        mlp_bias=True,
        interleaved=True,
    )


def _rope(config: Any, width: int, kind: str) -> Rope:
    """The frequencies of one kind of layer; transformers' own functions where they are scaled."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = config.rope_parameters
    nested = kind in parameters
    parameters = parameters[kind] if nested else parameters
    scaling = parameters.get("rope_type", "default")
    if scaling == "default":
        rotated = int(width * parameters.get("partial_rotary_factor", 1.0))
        exponents = torch.arange(0, rotated, 2, dtype=torch.float32) / rotated
        return Rope(1.0 / parameters["rope_theta"] ** exponents)
    if scaling == "dynamic":
        raise Unsupported("rotary positions scaled by the length of the text have no fast path")
    extra = {"layer_type": kind} if nested else {}
    function = ROPE_INIT_FUNCTIONS[scaling]
    frequencies, factor = function(config, torch.device("cpu"), **extra)
    if scaling != "longrope":
        return Rope(frequencies.float(), factor)
    original = parameters["original_max_position_embeddings"]
    long, _ = function(config, torch.device("cpu"), seq_len=original + 1, **extra)
    return Rope(frequencies.float(), factor, original, long.float())


_FAMILIES: dict[str, Callable[[Any], Architecture]] = {
    "llama": _llama_like,
    "mistral": _llama_like,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "phi3": _phi3,
    "olmo2": _olmo2,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
}
