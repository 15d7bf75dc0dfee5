"""The result of an evaluation: a base and an adapted model scored on the same rows."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from afina.data.layouts import Kind
from afina.measure.intervals import Difference
from afina.measure.metrics import main_metric


@dataclass(frozen=True)
class Evaluation:
    """`scores` by model (base, adapted) and metric; `differences` adapted − base by metric; `predictions` row by row.

    `trivial` are the scores of baselines that need no model, and `over_trivial` the adapted model's difference from the
    best of them. `general` is the loss on general text by language, `groups` where the errors are, `findings` what is
    wrong with the adapter, in sentences, and `signatures` how libraries computed their metrics.
    """

    kind: Kind
    data: str
    rows: int
    scores: dict[str, dict[str, Any]]
    intervals: dict[str, dict[str, tuple[float, float]]]
    differences: dict[str, Difference]
    trivial: dict[str, dict[str, float]]
    over_trivial: Difference
    general: dict[str, dict[str, Any]]
    groups: dict[str, Any]
    findings: list[str]
    signatures: dict[str, str]
    predictions: list[dict[str, Any]]

    @property
    def main(self) -> str:
        """The name of the main metric."""
        return main_metric(self.kind).name

    def json(self) -> dict[str, Any]:
        """The object of `evaluation.json` and of `--json`; what is undefined is null."""
        values = {
            **self.scores,
            "interval": self.intervals,
            "difference": {name: difference_json(d) for name, d in self.differences.items()},
            "trivial": self.trivial,
            "over_trivial": difference_json(self.over_trivial),
            "general": self.general,
            "groups": self.groups,
            "findings": self.findings,
            "signatures": self.signatures,
            "kind": self.kind,
            "main_metric": self.main,
            "data": self.data,
            "rows": self.rows,
        }
        return dict(defined(values))


def difference_json(difference: Difference) -> dict[str, Any]:
    return asdict(difference) | {"verdict": difference.verdict}


def defined(value: Any) -> Any:
    """The value with None for every float that is not finite (JSON has no NaN)."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: defined(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [defined(each) for each in value]
    return value
