"""Gemma 3, text alone: Gemma 2 with a norm over each head of q and k, and layers of two kinds with different rotary
bases."""

from collections.abc import Mapping
from typing import Any

from afina.engine.architecture import Architecture
from afina.engine.families._family import Family, GgufLayout, Settings, with_specs
from afina.engine.families._gemma import GGUF_SETTINGS, NORMS_FROM_ONE, gemma, query_scale
from afina.engine.ops import NORM_EACH_HEAD


def _architecture(config: Any) -> Architecture:
    # Its configuration still has Gemma 2's cap on attention scores, which the model no longer applies.
    return with_specs(gemma(config), norm=NORM_EACH_HEAD, eps=config.rms_norm_eps, cap=0.0)


def _further(metadata: Mapping[str, Any], rope: Settings) -> Settings:
    sliding = {"rope_type": "default", "rope_theta": metadata.get("rope.freq_base_swa", 10000.0)}
    by_kind = {"full_attention": rope, "sliding_attention": sliding}
    return {"rope_parameters": by_kind, **query_scale(metadata, largest=62)}


FAMILY = Family("gemma3_text", _architecture, GgufLayout("gemma3", GGUF_SETTINGS, _further, NORMS_FROM_ONE))
