"""How fast answers come. No intervals: what is timed is the whole of the rows, not each."""

from afina.measure.metric import ANSWERED, Group, Metric, Predictions, one_decimal, ratio

_ABSENT = "not timed"  # the answers of a base come from the cache, with nothing to say how fast they would come today


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
        absent=_ABSENT,
    ),
    Metric(
        "answers_per_second",
        "answers per second, in batches",
        Group.SPEED,
        _answers_per_second,
        one_decimal,
        kinds=ANSWERED,
        absent=_ABSENT,
    ),
    Metric(
        "latency",
        "seconds per answer, one at a time",
        Group.SPEED,
        _latency,
        lower_is_better=True,
        kinds=ANSWERED,
        absent=_ABSENT,
    ),
)
