"""Exact match: answers that are one of the references, as JSON values where the data are JSON."""

from afina.measure.metric import FREE_TEXT, Group, Metric, Predictions, RowStats, mean, percent
from afina.measure.metrics.fields import same_json


def _exact_match(predictions: Predictions) -> RowStats:
    pairs = list(zip(predictions.answers, predictions.references, strict=True))
    if predictions.kind == "structured":
        return mean([float(any(same_json(answer, ref) for ref in refs)) for answer, refs in pairs])
    return mean([float(answer.strip() in {ref.strip() for ref in refs}) for answer, refs in pairs])


METRIC = Metric("exact_match", "exact match", Group.EXACTNESS, _exact_match, percent, kinds=("structured", *FREE_TEXT))
