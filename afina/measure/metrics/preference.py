"""How often a judge preferred the answers to the other model's, ties counting half; only where a judge was asked."""

from afina.measure.metric import Group, Metric, Predictions, RowStats, mean, percent


def _preferred(predictions: Predictions) -> RowStats:
    return mean(predictions.preferred)


METRIC = Metric("judge", "preferred by the judge", Group.PREFERENCE, _preferred, percent)
