"""Qwen 2 and 2.5: Llama with biases on q, k and v."""

from dataclasses import replace
from typing import Any

from afina.engine.architecture import Architecture
from afina.engine.families._family import GROUPED_SIZES, Family, GgufLayout, llama_like


def _architecture(config: Any) -> Architecture:
    return replace(llama_like(config), qkv_bias=True)


FAMILY = Family("qwen2", _architecture, GgufLayout("qwen2", GROUPED_SIZES))
