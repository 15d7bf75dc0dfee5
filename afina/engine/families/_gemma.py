"""What Gemma 2 and Gemma 3 share: norms on both sides, whose weights count from one, scaled token embeddings, capped
scores."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from afina.engine.architecture import Architecture, Unsupported
from afina.engine.families._family import GROUPED_SIZES, HEAD_DIM, Settings, Stored, llama_like, with_specs

GGUF_SETTINGS = (
    GROUPED_SIZES
    | HEAD_DIM
    | {
        "sliding_window": "attention.sliding_window",
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
    }
)


def gemma(config: Any) -> Architecture:
    if getattr(config, "use_bidirectional_attention", False):
        raise Unsupported("bidirectional attention has no fast path")
    scale, cap = config.query_pre_attn_scalar**-0.5, config.attn_logit_softcapping or 0.0
    found = with_specs(llama_like(config), scale=scale, cap=cap)
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


def query_scale(metadata: Mapping[str, Any], largest: int) -> Settings:
    """GGUF files do not hold it: the model of `largest` layers scales scores by hidden size / heads, the others by
    head_dim."""
    scaled = metadata["embedding_length"] // metadata["attention.head_count"]
    head_dim = metadata.get("attention.key_length", scaled)
    return {"query_pre_attn_scalar": scaled if metadata["block_count"] == largest else head_dim}


# In the file, norms hold what transformers adds one to in computing.
NORMS_FROM_ONE = dict.fromkeys(
    (
        "attn_norm", "attn_q_norm", "attn_k_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "output_norm",
    ), Stored(offset=1.0),
)  # fmt: skip
