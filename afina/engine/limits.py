"""What numbers a model may have. Kernels compute addresses from them, so they are checked where they enter, whatever
file they came from."""

import math
from typing import Any

MOST_HEADS, WIDEST_HEAD, MOST_TOKENS, MOST_POSITIONS = 10_000, 65_536, 100_000_000, 10**9


def whole(name: str, value: Any, least: int, most: int) -> None:
    """Raises `ValueError` unless `value` is a whole number from `least` to `most`."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name}: {value!r}, expected a whole number from {least:,} to {most:,}")


def finite(name: str, value: Any) -> None:
    """Raises `ValueError` unless `value` is a finite number of 0 or more."""
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}: {value!r}, expected a finite number of 0 or more")
