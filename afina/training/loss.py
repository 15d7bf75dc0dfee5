"""The loss of a model on rows."""

import math
from collections.abc import Sequence

import torch

from afina.core.layers import evaluation_mode
from afina.data.batch import micro_batches, pack
from afina.data.template import Row
from afina.models.load import Base
from afina.models.model import IGNORE_INDEX, Packed

TOKENS = 2048  # a forward pass without gradients


def perplexity(loss: float) -> float:
    """exp(loss), of a loss in nats a token; kept finite."""
    return math.exp(min(loss, 700.0))


def mean_loss(base: Base, rows: Sequence[Row]) -> float:
    """The loss a labelled token over all `rows`, in nats; its exponential is the perplexity."""
    total, tokens = 0.0, 0
    with torch.no_grad(), evaluation_mode(base.model.module):
        for group in micro_batches(rows, TOKENS):
            packed = pack(group, _device(base))
            total += base.model.summed_loss(packed).item()
            tokens += packed.labelled
    return total / tokens


def row_losses(base: Base, rows: Sequence[Row]) -> list[tuple[float, int]]:
    """The summed loss of each row, in nats, and over how many tokens, in their order."""
    numbers = {id(row): i for i, row in enumerate(rows)}
    found = [(0.0, 0)] * len(rows)
    with torch.no_grad(), evaluation_mode(base.model.module):
        for group in micro_batches(rows, TOKENS):
            packed = pack(group, _device(base))
            counts = _labelled(packed)
            for row, losses in zip(group, base.model.label_losses(packed).split(counts), strict=True):
                found[numbers[id(row)]] = float(losses.sum()), len(losses)
    return found


def _labelled(packed: Packed) -> list[int]:
    """The labelled positions of each row."""
    return [int((labels != IGNORE_INDEX).sum()) for labels in packed.labels_T.split(packed.segments.lengths)]


def _device(base: Base) -> torch.device:
    return next(base.model.module.parameters()).device
