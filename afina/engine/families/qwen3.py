"""Qwen 3: Llama with a norm over each head of q and k."""

from typing import Any

from afina.engine.architecture import Architecture
from afina.engine.families._family import GROUPED_SIZES, HEAD_DIM, Family, GgufLayout, llama_like, with_specs
from afina.engine.ops import NORM_EACH_HEAD


def _architecture(config: Any) -> Architecture:
    return with_specs(llama_like(config), norm=NORM_EACH_HEAD, eps=config.rms_norm_eps)


FAMILY = Family("qwen3", _architecture, GgufLayout("qwen3", GROUPED_SIZES | HEAD_DIM))
