"""Where the errors are: by length, and the worst rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from afina.data.template import Row
from afina.measure.metrics.scores import Metric
from afina.measure.outcomes import Outcome, Questions

_GROUPS, _FEWEST = 3, 5  # groups, and rows in each
_WORST = 10


def by_length(rows: Sequence[Row], main: dict[str, Metric]) -> list[dict[str, Any]]:
    """Each model's score on thirds of the rows, from short to long. Nothing where there are few rows."""
    count = min(len(rows), len(next(iter(main.values())).stats))
    if count < _GROUPS * _FEWEST:
        return []
    lengths = np.array([len(row.input_ids) for row in rows[:count]])
    found = []
    for group in np.array_split(np.argsort(lengths, kind="stable"), _GROUPS):
        scores = {name: m.value(m.stats[group].sum(0), len(group)) for name, m in main.items()}
        found.append({"from": int(lengths[group].min()), "to": int(lengths[group].max()), "rows": len(group)} | scores)
    return found


def worst(asked: Questions, scores: dict[str, list[float]], adapted: Outcome) -> list[int]:
    """The numbers of the rows that the adapted model does worst on, of equal ones those whose right answer surprises it most."""
    if asked.kind == "text":
        return []

    def surprise(i: int) -> float:
        nats, tokens = adapted.nats[i] if i < len(adapted.nats) else (float("inf"), 1)
        return nats / max(tokens, 1)

    best = max(scores["adapted"])
    order = sorted(range(len(asked.examples)), key=lambda i: (scores["adapted"][i], -surprise(i)))
    return [i for i in order[:_WORST] if scores["adapted"][i] < best]
