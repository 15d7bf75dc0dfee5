"""GGUF files, for llama.cpp and what is built on it: the merged model in one, an adapter in another.

Comes in: a base with weights by transformers' names, or an adapter's folder. Goes out: a file under its name once it is
whole and its head was read back: Afina's reader sees the same model in it. Names and orders of rows are those of the
reader (`models.formats`, `engine.families`). Raises `BaseModelError` and `AdapterError` for what GGUF, or llama.cpp,
has no place for, by name, with the way out; `OutputError` where a file cannot be written.

Public: `TYPES`, `TypePlan`, `plan_types` (types.py: the type of each tensor, and bytes); `GgufFacts`, `write_model`,
`plan_model` (model.py); `write_adapter`, `read_adapter` (adapter.py).
"""

from afina.serving.gguf.adapter import read_adapter as read_adapter
from afina.serving.gguf.adapter import write_adapter as write_adapter
from afina.serving.gguf.facts import GgufFacts as GgufFacts
from afina.serving.gguf.model import plan_model as plan_model
from afina.serving.gguf.model import write_model as write_model
from afina.serving.gguf.types import TYPES as TYPES
from afina.serving.gguf.types import TypePlan as TypePlan
from afina.serving.gguf.types import plan_types as plan_types
