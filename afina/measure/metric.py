"""What a metric is: an object with its name, how it is shown, which direction is better, and how it is computed.

A score is a function of sums over rows, so that it can be formed of any sample of the rows, and has an interval.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, get_args

import numpy as np

from afina.data.layouts import Kind

Floats = np.ndarray[Any, np.dtype[np.float64]]
Table = tuple[str, list[str], list[tuple[str, list[str]]]]  # heading, columns, and lines: a name with a cell per column

Kinds = tuple[Kind, ...]
EVERY_KIND: Kinds = get_args(Kind)
FREE_TEXT: Kinds = ("translation", "summarisation", "chat", "generation")
ANSWERED: Kinds = ("classification", "structured", *FREE_TEXT)  # all but plain text, which asks nothing


class Group(IntEnum):
    """What a metric is about; tables list metrics in this order."""

    QUALITY = 0
    EXACTNESS = 1
    LIKELIHOOD = 2
    VARIETY = 3
    ENDING = 4
    PREFERENCE = 5
    SPEED = 6
    OWN = 7


@dataclass(frozen=True)
class Predictions:
    """A model's answers, as metrics read them, row by row.

    `references` are the right answers of each row. `losses` are the summed loss of each expected answer, in nats, with
    its tokens, and `expected` the texts of these; rows that could not be rendered have none. `stopped` says which
    answers ended with the end of turn, and `tokens` is how many were generated in `seconds`, in batches; `latency` is
    the seconds of one answer generated alone. `preferred` is 1 where a judge preferred the answer to the other model's,
    0 where it did not, ½ for a tie.
    """

    kind: Kind
    answers: Sequence[str]
    references: Sequence[Sequence[str]]
    expected: Sequence[str] = ()
    losses: Sequence[tuple[float, int]] = ()
    stopped: Sequence[bool] = ()
    tokens: int = 0
    seconds: float = 0.0
    latency: float = 0.0
    preferred: Sequence[float] = ()

    @property
    def labels(self) -> list[str]:
        """The classes among the references, sorted."""
        return sorted({references[0].strip() for references in self.references})


@dataclass(frozen=True)
class RowStats:
    """`stats` has a line per row; `value` forms the score of the sum of any choice of lines and their number.

    `signature` says how a library was configured.
    """

    stats: Floats
    value: Callable[[Floats, int], float]
    signature: str = ""

    def score(self) -> float:
        return self.value(self.stats.sum(0), len(self.stats))

    def rows(self) -> list[float]:
        """The score of each row by itself."""
        return [self.value(line, 1) for line in self.stats]


def percent(value: float, signed: bool = False) -> str:
    """A share in per cent; a difference of shares, `signed`, in percentage points."""
    return f"{100 * value:+.1f} points" if signed else f"{100 * value:.1f} %"


def one_decimal(value: float, signed: bool = False) -> str:
    return f"{value:{'+' if signed else ''}.1f}"


def three_decimals(value: float, signed: bool = False) -> str:
    return f"{value:{'+' if signed else ''}.3f}"


def of_any_size(value: float, signed: bool = False) -> str:
    """Three decimals, or three digits from a thousand on: 3,620,000."""
    if abs(value) < 1000:
        return three_decimals(value, signed)
    return f"{float(f'{value:.3g}'):{'+' if signed else ''},.0f}"


@dataclass(frozen=True)
class Metric:
    """A metric by `name` (its key in JSON); `label` is what people read, with the unit where it has one.

    `compute` gives `RowStats` where an interval can be formed by resampling rows, a number where it cannot, and a dict
    for a table of several numbers, which `tables` lays out, of the base and of the adapted model, for the report. A
    score that the rows do not define is NaN. It is computed for data of `kinds` (none: only where it is asked for), and
    is the main score of those in `main_for`, which decides which of two models is better. With `needs_text` it is left
    out for classifiers, which write no text. `absent` is shown for a score that is NaN.
    """

    name: str
    label: str
    group: Group
    compute: Callable[[Predictions], RowStats | float | dict[str, Any]]
    shown: Callable[[float, bool], str] = three_decimals
    lower_is_better: bool = False
    kinds: Kinds = ()
    main_for: Kinds = ()
    needs_text: bool = False
    absent: str = "undefined"
    tables: Callable[[Any, Any], Iterator[Table]] | None = None

    def stats(self, predictions: Predictions) -> RowStats:
        """`compute` of a metric that has an interval, as every main score does."""
        found = self.compute(predictions)
        assert isinstance(found, RowStats), self.name
        return found


def mean(values: Sequence[float]) -> RowStats:
    """The mean of a value per row."""
    return RowStats(np.array(values, dtype=np.float64)[:, None], lambda total, n: float(total[0] / n))


def ratio(a: float, b: float) -> float:
    """a / b; NaN where b is zero."""
    return float(a / b) if b else math.nan


def rate(pairs: Sequence[tuple[float, float]]) -> RowStats:
    """The sum of the first over the sum of the second of each pair."""
    stats = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    return RowStats(stats, lambda total, _: ratio(total[0], total[1]))
