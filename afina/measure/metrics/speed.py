"""How fast answers come. No intervals: what is timed is the whole of the rows, not each."""

from afina.measure.metric import ANSWERED, Group, Metric, Predictions, one_decimal, ratio


def _tokens_per_second(predictions: Predictions) -> float:
    return ratio(predictions.tokens, predictions.seconds)


def _answers_per_second(predictions: Predictions) -> float:
    return ratio(len(predictions.answers), predictions.seconds)


def _latency(predictions: Predictions) -> float:
    return predictions.latency


METRIC = (
    Metric(
        "tokens_per_second",
        "tokens per second, in batches",
        Group.SPEED,
        _tokens_per_second,
        one_decimal,
        kinds=ANSWERED,
        needs_text=True,
    ),
    Metric(
        "answers_per_second",
        "answers per second, in batches",
        Group.SPEED,
        _answers_per_second,
        one_decimal,
        kinds=ANSWERED,
    ),
    Metric("latency", "seconds per answer, one at a time", Group.SPEED, _latency, lower_is_better=True, kinds=ANSWERED),
)
