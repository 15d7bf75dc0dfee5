"""The metrics, a file for each family: classification, JSON fields, BLEU, ROUGE, likelihood, variety, speed and more.

Comes in: `Predictions` (answers, references, losses, times). Goes out: scores with what resampling needs.
To add one is to add a file that defines `METRIC`, a `measure.metric.Metric` or a tuple of them: reports, cards,
comparisons and searches read label, format and direction from the table.
Public: `METRICS`, `metrics_for`, `main_metric`, `described`.
"""

from afina.core.registry import Registry
from afina.data.layouts import Kind
from afina.measure.metric import Group, Metric

METRICS: Registry[Metric] = Registry("afina.measure.metrics", "METRIC", "metric")


def metrics_for(kind: Kind, writes_text: bool = True) -> list[Metric]:
    """The metrics that are computed for data of `kind`, in the order of tables."""
    fitting = [each for each in METRICS if kind in each.kinds and (writes_text or not each.needs_text)]
    return sorted(fitting, key=lambda each: each.group)


def main_metric(kind: Kind) -> Metric:
    """The metric that decides which of two models is better on data of `kind`."""
    return next(each for each in METRICS if kind in each.main_for)


def described(name: str) -> Metric:
    """The metric called `name`, for showing it: one not in the table, such as a user's own, has only its name."""
    return METRICS[name] if name in METRICS else Metric(name, name, Group.OWN, lambda _: {})
