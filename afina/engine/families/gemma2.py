"""Gemma 2."""

from collections.abc import Mapping
from typing import Any

from afina.engine.families._family import Family, GgufLayout, Settings
from afina.engine.families._gemma import GGUF_SETTINGS, NORMS_FROM_ONE, gemma, query_scale


def _further(metadata: Mapping[str, Any], rope: Settings) -> Settings:
    return {"rope_parameters": rope, **query_scale(metadata, largest=46)}


FAMILY = Family("gemma2", gemma, GgufLayout("gemma2", GGUF_SETTINGS, _further, NORMS_FROM_ONE))
