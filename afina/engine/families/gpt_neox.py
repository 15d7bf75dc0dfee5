"""GPT-NeoX and Pythia: attention and MLP side by side, LayerNorm, q, k and v of each head together."""

from typing import Any

import torch
from torch import Tensor

from afina.engine.architecture import Architecture, Names
from afina.engine.families._family import SIZES, Family, GgufLayout, Stored, rope_of
from afina.engine.ops import AttentionSpec


def _architecture(config: Any) -> Architecture:
    heads, head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    rope = rope_of(config, head_dim, "")
    spec = AttentionSpec(heads, heads, head_dim, 2 * len(rope.frequencies), head_dim**-0.5)
    return Architecture(
        model_type=config.model_type,
        hidden=config.hidden_size,
        inner=config.intermediate_size,
        vocabulary=config.vocab_size,
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
        renamed={"embed_out.weight": "lm_head.weight"},
        computed=(".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"),
    )


def _one_after_another(config: Any) -> Tensor:
    """In the file, rows of q, k and v come one after another; in transformers, head by head."""
    return torch.arange(3 * config.hidden_size).view(config.num_attention_heads, 3, -1).transpose(0, 1).flatten()


_SETTINGS = SIZES | {
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "use_parallel_residual": "use_parallel_residual",
}
_STORED = {"attn_qkv": Stored(_one_after_another)}
FAMILY = Family("gpt_neox", _architecture, GgufLayout("gptneox", _SETTINGS, stored=_STORED, needs_head=True))
