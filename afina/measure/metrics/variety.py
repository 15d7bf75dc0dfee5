"""How varied answers are: different words and pairs of words, and what is repeated within an answer."""

from collections.abc import Sequence
from functools import partial

from afina.measure.metric import FREE_TEXT, Group, Metric, Predictions, RowStats, percent, rate, ratio


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def repetition(answers: Sequence[str]) -> RowStats:
    """The share of 4-grams that occurred before in the same answer; undefined where no answer has four words.

    seq-rep-4 of Welleck et al. 2020 (https://arxiv.org/abs/1908.04319), section 3.
    """
    runs = [_ngrams(answer, 4) for answer in answers]
    return rate([(len(each) - len(set(each)), len(each)) for each in runs])


def distinct(answers: Sequence[str], n: int) -> float:
    """Different n-grams over all n-grams, of all answers together.

    Li et al. 2016 (https://arxiv.org/abs/1510.03055), section 5.2. It falls with the number of rows,
    so that no interval can be formed by resampling them.
    """
    runs = [run for answer in answers for run in _ngrams(answer, n)]
    return ratio(len(set(runs)), len(runs))


def _distinct(n: int, predictions: Predictions) -> float:
    return distinct(predictions.answers, n)


def _repetition(predictions: Predictions) -> RowStats:
    return repetition(predictions.answers)


METRIC = (
    Metric(
        "distinct_1", "different words (distinct-1)", Group.VARIETY, partial(_distinct, 1), percent, kinds=FREE_TEXT
    ),
    Metric(
        "distinct_2",
        "different pairs of words (distinct-2)",
        Group.VARIETY,
        partial(_distinct, 2),
        percent,
        kinds=FREE_TEXT,
    ),
    Metric(
        "repetition", "repeated 4-grams", Group.VARIETY, _repetition, percent, lower_is_better=True, kinds=FREE_TEXT
    ),
)
