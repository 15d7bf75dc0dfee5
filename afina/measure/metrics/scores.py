"""What a score is: a function of sums over rows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Metric:
    """`stats` has one line a row; `value` makes the score of the sum of any choice of lines and their number.

    So that any sample of the rows can be scored. `signature` says how a library was set.
    """

    name: str
    stats: Floats
    value: Callable[[Floats, int], float]
    lower_is_better: bool = False
    signature: str = ""

    def score(self) -> float:
        return self.value(self.stats.sum(0), len(self.stats))

    def rows(self) -> list[float]:
        """The score of each row by itself."""
        return [self.value(line, 1) for line in self.stats]


def mean(name: str, values: Sequence[float]) -> Metric:
    return Metric(name, np.array(values, dtype=np.float64)[:, None], lambda total, n: float(total[0] / n))


def ratio(a: float, b: float) -> float:
    """a / b; NaN where b is zero."""
    return float(a / b) if b else math.nan


def rate(name: str, pairs: Sequence[tuple[float, float]], lower_is_better: bool = False) -> Metric:
    """The sum of the first over the sum of the second of each pair."""
    return Metric(name, np.array(pairs, dtype=np.float64), lambda total, _: ratio(total[0], total[1]), lower_is_better)
