"""OLMo 2: norms after attention and MLP rather than before them, and over all heads of q and k together."""

from dataclasses import replace
from typing import Any

from afina.engine.architecture import Architecture
from afina.engine.families._family import GROUPED_SIZES, Family, GgufLayout, llama_like, with_specs
from afina.engine.ops import NORM_ALL_HEADS


def _architecture(config: Any) -> Architecture:
    found = with_specs(llama_like(config), norm=NORM_ALL_HEADS, eps=config.rms_norm_eps)
    names = replace(
        found.names,
        attention_norm=None,
        after_attention_norm="post_attention_layernorm",
        mlp_norm=None,
        after_mlp_norm="post_feedforward_layernorm",
    )
    return replace(found, names=names)


FAMILY = Family("olmo2", _architecture, GgufLayout("olmo2", GROUPED_SIZES, needs_head=True))
