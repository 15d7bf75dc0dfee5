"""Step 4: whether the adapted model is better than its base, by how much, and how certain that is.

Comes in: a base with an adapter, rendered rows, the files of a run. Goes out: scores with confidence intervals,
findings in sentences, pages. Weights are read and never written. `metrics/` holds the metrics, one file each, `metric`
what one is; `outputs` runs a model, `evaluator` scores two, `verification` compares a saved adapter with the trained
one, `pages/` shows results to people.
Public: `evaluate_adapted`, `Evaluation`, `EvaluationSet`, `paired_difference`, `reference_logits`, `verify`,
`write_report`.
"""

from typing import TYPE_CHECKING

from afina.core.lazy import exports

if TYPE_CHECKING:
    from afina.measure.evaluation import Evaluation as Evaluation
    from afina.measure.evaluator import evaluate_adapted as evaluate_adapted
    from afina.measure.intervals import paired_difference as paired_difference
    from afina.measure.outputs import EvaluationSet as EvaluationSet
    from afina.measure.pages.report import write_report as write_report
    from afina.measure.verification import reference_logits as reference_logits
    from afina.measure.verification import verify as verify

__getattr__, __all__ = exports(
    __name__,
    {
        "Evaluation": "afina.measure.evaluation",
        "EvaluationSet": "afina.measure.outputs",
        "evaluate_adapted": "afina.measure.evaluator",
        "paired_difference": "afina.measure.intervals",
        "reference_logits": "afina.measure.verification",
        "verify": "afina.measure.verification",
        "write_report": "afina.measure.pages.report",
    },
)
