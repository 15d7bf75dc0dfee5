"""How much of a difference could be luck."""

from dataclasses import dataclass

import numpy as np

from afina.measure.metrics import Metric

RESAMPLES = 1000
FEWEST_ROWS = 10  # below, resampling sees too little of what could have been


@dataclass(frozen=True)
class Difference:
    """`value` = b − a with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float
    rows: int
    lower_is_better: bool = False

    @property
    def verdict(self) -> str:
        """better, worse, not distinguishable (the interval holds zero), or too few rows for any of these."""
        if self.rows < FEWEST_ROWS:
            return "too few rows to tell"
        if self.low <= 0 <= self.high:
            return "not distinguishable"
        return "better" if (self.low > 0) != self.lower_is_better else "worse"


def paired_difference(a: Metric, b: Metric, seed: int = 0) -> Difference:
    """b − a on the same rows, with the 95 % percentile interval of the paired bootstrap over rows.

    Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation", section 4: the rows are drawn anew with
    replacement, the same draw for both, and the score is formed of the drawn rows' sums.
    """
    n = len(a.stats)
    rng = np.random.default_rng(seed)
    differences = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        times = np.bincount(rng.integers(n, size=n), minlength=n)
        differences[i] = b.value(times @ b.stats, n) - a.value(times @ a.stats, n)
    low, high = np.percentile(differences, [2.5, 97.5])
    return Difference(b.score() - a.score(), float(low), float(high), n, b.lower_is_better)
