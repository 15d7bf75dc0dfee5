"""The model families that Afina's own decoder can be: one file per family.

Comes in: a configuration as `transformers` parses it. Goes out: the `Architecture` that the decoder is built from. A
file gives `FAMILY`, one `Family` or several: the model type in transformers' configurations, the function from a
configuration to an `Architecture`, and, where GGUF files of the family are read and written, a `GgufLayout` (how
llama.cpp's converter names its settings and reorders its weights). To add a family, add a file; what several share
stands in `_family.py`.

Public: `FAMILIES`, `Family`, `GgufLayout`, `Stored`, `AS_IT_IS`, `architecture_of`, `family_of_gguf`.
"""

from typing import Any

from afina.core.registry import Registry
from afina.engine.architecture import Architecture, Unsupported, checking_configuration
from afina.engine.families._family import AS_IT_IS as AS_IT_IS
from afina.engine.families._family import Family as Family
from afina.engine.families._family import GgufLayout as GgufLayout
from afina.engine.families._family import Stored as Stored
from afina.engine.ops import ACTIVATIONS, GATES

FAMILIES: Registry[Family] = Registry("afina.engine.families", "FAMILY", "model family")


@checking_configuration()
def architecture_of(config: Any) -> Architecture:
    """The architecture that a transformers configuration describes. Raises `Unsupported` and `BaseModelError`."""
    if config.model_type not in FAMILIES:
        raise Unsupported(f"architecture {config.model_type!r} has no fast path")
    found = FAMILIES[config.model_type].architecture(config)
    if found.activation not in (GATES if found.gated else ACTIVATIONS):
        raise Unsupported(f"activation {found.activation!r} has no fast path")
    return found


def family_of_gguf(architecture: str | None) -> tuple[Family, GgufLayout] | None:
    """The family of GGUF files whose `general.architecture` is this; None where it is none that is read here."""
    pairs = ((family, family.gguf) for family in FAMILIES)
    return next(((family, layout) for family, layout in pairs if layout and layout.architecture == architecture), None)
