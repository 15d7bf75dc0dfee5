"""Step 1, the base model: from a name to a frozen model, its tokenizer and its facts.

Comes in: a catalogue name, a hub id, a folder or a GGUF file. Goes out: `Base`. Never trains.
Public: `load_base`, `describe`, `Base`, `Facts`, `Tokenizer`, `generate`, `catalogue`.
"""

from typing import TYPE_CHECKING

from afina.core.lazy import exports

if TYPE_CHECKING:
    from afina.base.catalogue import catalogue as catalogue
    from afina.base.generation import generate as generate
    from afina.base.load import Base as Base
    from afina.base.load import Facts as Facts
    from afina.base.load import describe as describe
    from afina.base.load import load_base as load_base
    from afina.base.tokenizer import Tokenizer as Tokenizer

__getattr__, __all__ = exports(
    __name__,
    {
        "Base": "afina.base.load",
        "Facts": "afina.base.load",
        "Tokenizer": "afina.base.tokenizer",
        "catalogue": "afina.base.catalogue",
        "describe": "afina.base.load",
        "generate": "afina.base.generation",
        "load_base": "afina.base.load",
    },
)
