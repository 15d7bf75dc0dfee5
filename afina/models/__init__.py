"""Step 1, the base model: from a name to a frozen model, its tokenizer and its facts.

Comes in: a catalogue name, a hub id, a folder or a GGUF file. Goes out: a `Base` (load.py), or without weights a
`Skeleton` (skeleton.py), whose shapes give the bytes that a model takes (footprint.py). sources/ finds and downloads,
formats/ reads weight files, reading.py puts them into Afina's decoder, through_transformers.py into transformers'
classes; tokenizer.py and templates.py hold the chat; model.py, causal.py and encoders.py are what training and
measuring call; batcher.py, sampling.py and generation.py generate. Never trains.

Public: `load_base`, `describe`, `Base`, `Facts`, `Tokenizer`, `generate`, `known_models`.
"""

from typing import TYPE_CHECKING

from afina.core.lazy import exports

if TYPE_CHECKING:
    from afina.models.generation import generate as generate
    from afina.models.load import Base as Base
    from afina.models.load import Facts as Facts
    from afina.models.load import describe as describe
    from afina.models.load import load_base as load_base
    from afina.models.sources.catalogue import known_models as known_models
    from afina.models.tokenizer import Tokenizer as Tokenizer

__getattr__, __all__ = exports(
    __name__,
    {
        "Base": "afina.models.load",
        "Facts": "afina.models.load",
        "Tokenizer": "afina.models.tokenizer",
        "known_models": "afina.models.sources.catalogue",
        "describe": "afina.models.load",
        "generate": "afina.models.generation",
        "load_base": "afina.models.load",
    },
)
