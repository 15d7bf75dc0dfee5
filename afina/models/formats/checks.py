"""What is checked of configurations and weights of every format, as they are read."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from afina.core.errors import BaseModelError, counted
from afina.core.layers import not_finite
from afina.core.limits import CLASSES, EXPERTS, LAYERS, WIDEST
from afina.engine.limits import MOST_HEADS, MOST_POSITIONS, MOST_TOKENS

_POSITIVE = {
    "num_hidden_layers": LAYERS, "num_attention_heads": MOST_HEADS, "hidden_size": WIDEST, "vocab_size": MOST_TOKENS,
    "max_position_embeddings": MOST_POSITIONS,
}  # fmt: skip
# By how their names end, in any family's spelling: what libraries count up to before they look at anything else.
_COUNTS = {
    r"layers?|blocks|block_count|depth|n_layer": LAYERS,
    r"experts|expert_count": EXPERTS,
    "labels": CLASSES,
    r"state_size|d_state|d_model|d_ff|d_inner|intermediate_size|ffn_dim": WIDEST,
}


def check_counts(raw: Any) -> None:
    """Raises `ValueError` for numbers of a configuration with which a library would run for hours, or crash, and for
    code that it would fetch."""
    if not isinstance(raw, dict):
        raise ValueError("it is not a JSON object")
    for name, most in _POSITIVE.items():
        value = raw.get(name)
        if isinstance(value, int) and not 0 < value <= most:
            raise ValueError(f"{name} is {value}, expected 1 to {most:,}")
    parts = [raw]
    while parts:
        part = parts.pop()
        parts += [value for value in part.values() if isinstance(value, dict)]
        for name, value in part.items():
            if str(name).endswith("_implementation") and "/" in str(value):
                raise ValueError(f"it wants code from elsewhere to run, {value!r}, which Afina does not do")
            if isinstance(value, list | dict) and len(value) > CLASSES:
                raise ValueError(f"{name} has {counted(len(value), 'item')}, expected {CLASSES:,} at most")
            for ends, limit in _COUNTS.items():
                if isinstance(value, int | float) and re.search(rf"({ends})$", str(name)) and abs(value) > limit:
                    raise ValueError(f"{name} is {value}, expected {limit:,} at most")
    heads, few = raw.get("num_attention_heads"), raw.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(few, int) and few and heads % few:
        raise ValueError(f"{heads} attention heads cannot share {few} heads of keys and values")


def check_numbers(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Raises `BaseModelError` where weights of the file or folder at `path` hold NaN or infinity."""
    if broken := not_finite(weights):
        raise BaseModelError(
            f"{path}: {broken[0]} holds numbers that are not finite (NaN or infinity)",
            "download it again; if it was made so, use another base",
        )
