"""Step 4: whether it got better, by how much, and whether that is luck.

Comes in: models, examples, files of a run. Goes out: scores with intervals, a verdict, a page. Never writes weights.
Public: `paired_difference`, `evaluate_adapted`, `Evaluation`, `probe`, `verify`, `write_report`.
"""

from typing import TYPE_CHECKING

from afina.core.lazy import exports

if TYPE_CHECKING:
    from afina.measure.evaluation import Evaluation as Evaluation
    from afina.measure.evaluation import evaluate_adapted as evaluate_adapted
    from afina.measure.intervals import paired_difference as paired_difference
    from afina.measure.report import write_report as write_report
    from afina.measure.verification import probe as probe
    from afina.measure.verification import verify as verify

__getattr__, __all__ = exports(
    __name__,
    {
        "Evaluation": "afina.measure.evaluation",
        "evaluate_adapted": "afina.measure.evaluation",
        "paired_difference": "afina.measure.intervals",
        "probe": "afina.measure.verification",
        "verify": "afina.measure.verification",
        "write_report": "afina.measure.report",
    },
)
