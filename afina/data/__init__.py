"""Step 2, the data: from a file of examples to token ids and labels.

Comes in: files of many formats (`formats/`, a module for each), and templates over their columns. Goes out: rows
(input_ids, labels) to train and to evaluate on, which lie on disk, and every rejected row with its location and reason.
read.py gives rows, mapping.py examples, splits.py says which are trained on, template.py renders, load.py does it all;
`quality/` checks and cleans, `roles/` says what columns may be for where no layout is known. No optimiser.
Public: `load_data`, `read_examples`, `DataSettings`, `Dataset`, `Example`, `Row`, `render`, `prompt_ids`, `pack`.
"""

from typing import TYPE_CHECKING

from afina.core.lazy import exports

if TYPE_CHECKING:
    from afina.data.batch import pack as pack
    from afina.data.load import Dataset as Dataset
    from afina.data.load import load_data as load_data
    from afina.data.mapping import Example as Example
    from afina.data.mapping import read_examples as read_examples
    from afina.data.settings import DataSettings as DataSettings
    from afina.data.template import Row as Row
    from afina.data.template import prompt_ids as prompt_ids
    from afina.data.template import render as render

__getattr__, __all__ = exports(
    __name__,
    {
        "DataSettings": "afina.data.settings",
        "Dataset": "afina.data.load",
        "Example": "afina.data.mapping",
        "Row": "afina.data.template",
        "pack": "afina.data.batch",
        "load_data": "afina.data.load",
        "prompt_ids": "afina.data.template",
        "read_examples": "afina.data.mapping",
        "render": "afina.data.template",
    },
)
