"""What is checked of weights of every format, as they are read."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from afina.core.errors import BaseModelError
from afina.core.layers import not_finite


def check_numbers(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Raises `BaseModelError` where weights of the file or folder at `path` hold NaN or infinity."""
    if broken := not_finite(weights):
        raise BaseModelError(
            f"{path}: {broken[0]} holds numbers that are not finite (NaN or infinity)",
            "download it again; if it was made so, use another base",
        )
