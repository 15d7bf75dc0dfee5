"""Where the errors are: scores by the length of the rows, and the worst rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from afina.data.template import Row
from afina.measure.metric import RowStats
from afina.measure.outputs import EvaluationSet, ModelOutputs

_GROUPS, _FEWEST = 3, 5  # groups, and rows in each
_WORST = 10


def by_length(rows: Sequence[Row], main: dict[str, RowStats]) -> list[dict[str, Any]]:
    """Each model's main score on thirds of the rows, from short to long; empty where there are few rows."""
    count = min(len(rows), len(next(iter(main.values())).stats))
    if count < _GROUPS * _FEWEST:
        return []
    lengths = np.array([len(row.input_ids) for row in rows[:count]])
    groups = []
    for group in np.array_split(np.argsort(lengths, kind="stable"), _GROUPS):
        scores = {name: m.value(m.stats[group].sum(0), len(group)) for name, m in main.items()}
        groups.append({"from": int(lengths[group].min()), "to": int(lengths[group].max()), "rows": len(group)} | scores)
    return groups


def worst(eval_set: EvaluationSet, scores: dict[str, list[float]], adapted: ModelOutputs) -> list[int]:
    """The numbers of the rows that the adapted model does worst on; of equal ones first those with the highest loss."""
    if eval_set.kind == "text":
        return []

    def loss(i: int) -> float:
        nats, tokens = adapted.nats[i] if i < len(adapted.nats) else (float("inf"), 1)
        return nats / max(tokens, 1)

    best = max(scores["adapted"])
    order = sorted(range(len(eval_set.examples)), key=lambda i: (scores["adapted"][i], -loss(i)))
    return [i for i in order[:_WORST] if scores["adapted"][i] < best]
