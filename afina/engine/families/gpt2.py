"""GPT-2: learned positions, LayerNorm, and weights stored as (inputs, outputs)."""

from collections.abc import Mapping
from typing import Any

from afina.engine.architecture import Architecture, Names, Unsupported
from afina.engine.families._family import Family, GgufLayout, Settings, Stored
from afina.engine.ops import NO_NORM, AttentionSpec


def _architecture(config: Any) -> Architecture:
    if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights or config.add_cross_attention:
        raise Unsupported("this variant of GPT-2's attention has no fast path")
    heads, head_dim = config.n_head, config.n_embd // config.n_head
    return Architecture(
        model_type=config.model_type,
        hidden=config.n_embd,
        inner=config.n_inner or 4 * config.n_embd,
        vocabulary=config.vocab_size,
        specs=(AttentionSpec(heads, heads, head_dim, 0, head_dim**-0.5, NO_NORM),) * config.n_layer,
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
        computed=(".attn.bias", ".attn.masked_bias"),
    )


def _no_rope(metadata: Mapping[str, Any], rope: Settings) -> Settings:
    return {}


_SETTINGS = {
    "n_embd": "embedding_length",
    "n_inner": "feed_forward_length",
    "n_layer": "block_count",
    "n_head": "attention.head_count",
    "n_positions": "context_length",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
}
_TURNED = dict.fromkeys(("attn_qkv", "attn_output", "ffn_up", "ffn_down"), Stored(turned=True))
FAMILY = Family("gpt2", _architecture, GgufLayout("gpt2", _SETTINGS, _no_rope, _TURNED))
