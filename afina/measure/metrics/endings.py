"""How answers end: with the end of turn, cut off at the limit, or before a word."""

from afina.measure.metric import ANSWERED, Group, Metric, Predictions, RowStats, mean, percent


def _stop_rate(predictions: Predictions) -> RowStats:
    return mean([float(stopped) for stopped in predictions.stopped])


def _truncated_rate(predictions: Predictions) -> float:
    """No interval: the stop rate, whose complement it is, has one."""
    return sum(not stopped for stopped in predictions.stopped) / len(predictions.stopped)


def _empty_rate(predictions: Predictions) -> RowStats:
    return mean([float(not answer) for answer in predictions.answers])


METRIC = (
    Metric("stop_rate", "stop rate", Group.ENDING, _stop_rate, percent, kinds=ANSWERED, needs_text=True),
    Metric(
        "truncated_rate", "cut off at the limit", Group.ENDING, _truncated_rate, percent, lower_is_better=True,
        kinds=ANSWERED, needs_text=True,
    ),
    Metric(
        "empty_rate", "empty answers", Group.ENDING, _empty_rate, percent, lower_is_better=True, kinds=ANSWERED,
        needs_text=True,
    ),
)  # fmt: skip
