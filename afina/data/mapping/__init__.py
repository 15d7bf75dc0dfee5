"""From a record to an example: a conversation whose answers are to be learned, and what it is scored against.

Comes in: records (rows.py), and settings with templates or none, so that a layout is recognised (layouts.py). Goes out:
an `Example` of each record that can be used, the others with a reason, and notes on all that is not used or read in a
way of its own. examples.py reads them all, converting.py makes one of a record by its columns (columns.py) or its
conversation (messages.py).
"""

from afina.data.mapping.columns import ColumnTemplate, text_of
from afina.data.mapping.converting import layout_of
from afina.data.mapping.example import Example, Turn, Unusable, check_unicode, said_of, texts_of, thought_of
from afina.data.mapping.examples import check_usable, map_examples, read_examples, usable_examples

__all__ = [
    "ColumnTemplate",
    "Example",
    "Turn",
    "Unusable",
    "check_unicode",
    "check_usable",
    "layout_of",
    "map_examples",
    "read_examples",
    "said_of",
    "text_of",
    "texts_of",
    "thought_of",
    "usable_examples",
]
