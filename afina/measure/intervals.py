"""Confidence intervals of scores and of differences, by the bootstrap over rows."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from afina.measure.metric import Floats, RowStats

RESAMPLES = 1000
FEWEST_ROWS = 10  # below, resampling sees too little of the variation
LEVEL = 0.95
_DRAWN_AT_ONCE = 100000


@dataclass(frozen=True)
class Difference:
    """`value` = b − a with the bounds of its 95 % confidence interval; NaN where it is undefined."""

    value: float
    low: float
    high: float
    rows: int
    lower_is_better: bool = False

    @property
    def verdict(self) -> str:
        """better, worse, not distinguishable (the interval holds zero), too few rows for any of these, or undefined."""
        if math.isnan(self.value) or math.isnan(self.low):
            return "undefined"
        if self.rows < FEWEST_ROWS:
            return "too few rows to tell"
        if self.low <= 0 <= self.high:
            return "not distinguishable"
        return "better" if (self.low > 0) != self.lower_is_better else "worse"


def paired_difference(a: RowStats, b: RowStats, lower_is_better: bool = False, seed: int = 0) -> Difference:
    """b − a on the same rows, with the 95 % interval of the paired bootstrap over rows.

    Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation", section 4: the rows are drawn with
    replacement, the same draw for both, and the score is formed of the drawn rows' sums.

    Where all rows are right or wrong and differ alike, resampling would give an interval of no width: there the rows
    that may differ otherwise are as many as the exact binomial interval leaves, and differ by one either way.
    """
    n, width = len(a.stats), a.stats.shape[1]
    if n > 1 and _is_yes_or_no(a.stats) and _is_yes_or_no(b.stats) and np.ptp(b.stats - a.stats) == 0:
        each, others = float(b.stats[0, 0] - a.stats[0, 0]), _at_most(n)
        value = each * (1 - others)
        low, high = max(-1.0, value - others), min(1.0, value + others)
        return Difference(each, low, high, n, lower_is_better)
    low, high = _bounds(
        np.hstack([a.stats, b.stats]), lambda total, n: b.value(total[width:], n) - a.value(total[:width], n), seed
    )
    return Difference(b.score() - a.score(), low, high, n, lower_is_better)


def interval(score: RowStats, seed: int = 0) -> tuple[float, float]:
    """The 95 % confidence interval of a score, by the bootstrap over rows; NaN where it is undefined.

    Where every row has 0, or every row 1, resampling would give an interval of no width: there it is the exact binomial
    one (Clopper and Pearson 1934, https://doi.org/10.1093/biomet/26.4.404).
    """
    rows, n = score.stats, len(score.stats)
    if n > 1 and _is_yes_or_no(rows) and np.ptp(rows) == 0:
        return (0.0, _at_most(n)) if rows[0, 0] == 0 else (1 - _at_most(n), 1.0)
    return _bounds(score.stats, score.value, seed)


def _is_yes_or_no(rows: Floats) -> bool:
    return rows.shape[1] == 1 and bool(np.isin(rows, (0.0, 1.0)).all())


def _at_most(n: int) -> float:
    """The share of rows of a kind of which none is among n: the end of the exact interval."""
    return float(1 - ((1 - LEVEL) / 2) ** (1 / n))


def _bounds(stats: Floats, value: Callable[[Floats, int], float], seed: int) -> tuple[float, float]:
    """Percentiles of the resampled scores, expanded for few rows.

    The plain ones are too narrow by the factor √((n−1)/n) and by the normal's quantile in the place of Student's
    (Hesterberg 2015, https://doi.org/10.1080/00031305.2015.1089789, section 3.3).
    """
    n = len(stats)
    if n < 2:
        return math.nan, math.nan
    scores = np.array([value(total, n) for total in _resampled(stats, seed)])
    scores = scores[~np.isnan(scores)]  # a resample may lack what the score needs
    if len(scores) < LEVEL * RESAMPLES:
        return math.nan, math.nan
    tail = 100 * _tail(n)
    low, high = np.percentile(scores, [tail, 100 - tail])
    return float(low), float(high)


def _resampled(stats: Floats, seed: int) -> Iterator[Floats]:
    """The sums of the rows of each resample; many resamples are drawn at once."""
    rng, n = np.random.default_rng(seed), len(stats)
    block = max(1, _DRAWN_AT_ONCE // n)
    for begin in range(0, RESAMPLES, block):
        count = min(block, RESAMPLES - begin)
        drawn = rng.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
        yield from np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n) @ stats


@lru_cache
def _tail(n: int) -> float:
    from scipy.special import stdtrit

    return NormalDist().cdf(-math.sqrt(n / (n - 1)) * float(stdtrit(n - 1, 0.5 + LEVEL / 2)))
