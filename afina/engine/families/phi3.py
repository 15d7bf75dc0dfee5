"""Phi 3 and 4: Llama with q, k and v in one layer, and gate and up in another."""

from dataclasses import replace
from typing import Any

from afina.engine.architecture import Architecture
from afina.engine.families._family import GROUPED_SIZES, Family, GgufLayout, llama_like


def _architecture(config: Any) -> Architecture:
    found = llama_like(config)
    return replace(found, names=replace(found.names, qkv=("qkv_proj",), up=("gate_up_proj",)))


_SETTINGS = GROUPED_SIZES | {"sliding_window": "attention.sliding_window"}
FAMILY = Family("phi3", _architecture, GgufLayout("phi3", _SETTINGS, window_is_ignored=True))
