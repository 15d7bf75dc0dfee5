"""How well a model predicts the expected answers: loss, perplexity and bits per byte."""

import math
from collections.abc import Sequence

import numpy as np

from afina.measure.metric import EVERY_KIND, Group, Metric, Predictions, RowStats, of_any_size, rate, ratio
from afina.training.loss import perplexity


def loss_per_token(losses: Sequence[tuple[float, int]]) -> RowStats:
    """The mean loss in nats; `losses` are the summed loss of each row and its tokens."""
    return rate(losses)


def bits_per_byte(nats: Sequence[float], texts: Sequence[str]) -> RowStats:
    """The loss of all texts over their length in UTF-8, which compares models with different tokenizers.

    Gao et al. 2020 (https://arxiv.org/abs/2101.00027), section 3.1. `nats` are the summed loss of each text.
    """
    return rate([(n / np.log(2), len(text.encode())) for n, text in zip(nats, texts, strict=True)])


def _loss(predictions: Predictions) -> RowStats:
    return loss_per_token(predictions.losses)


def _bits_per_byte(predictions: Predictions) -> RowStats:
    return bits_per_byte([nats for nats, _ in predictions.losses], predictions.expected)


def _perplexity(predictions: Predictions) -> float:
    """No interval: the loss, whose exponential it is, has one."""
    nats, tokens = (
        (sum(each) for each in zip(*predictions.losses, strict=True)) if predictions.losses else (math.nan, 0)
    )
    return perplexity(ratio(nats, tokens))


METRIC = (
    Metric(
        "bits_per_byte", "bits per byte", Group.LIKELIHOOD, _bits_per_byte, lower_is_better=True, kinds=EVERY_KIND,
        main_for=("text",), needs_text=True,
    ),
    Metric("loss", "loss, nats", Group.LIKELIHOOD, _loss, lower_is_better=True, kinds=EVERY_KIND),
    Metric(
        "perplexity", "perplexity", Group.LIKELIHOOD, _perplexity, of_any_size, lower_is_better=True, kinds=EVERY_KIND,
        needs_text=True,
    ),
)  # fmt: skip
