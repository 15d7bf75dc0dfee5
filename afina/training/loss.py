"""The loss of a model on rows."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from afina.data.batch import pack, packs
from afina.data.template import Row
from afina.models.load import Base
from afina.models.model import IGNORED, Packed

TOKENS = 2048  # a forward pass without gradients


def perplexity(loss: float) -> float:
    """exp(loss), of a loss in nats a token; kept finite."""
    return math.exp(min(loss, 700.0))


def mean_loss(base: Base, rows: Sequence[Row]) -> float:
    """The loss a labelled token over all `rows`, in nats; its exponential is the perplexity."""
    total, tokens = 0.0, 0
    with _evaluating(base) as device:
        for group in packs(rows, TOKENS):
            packed = pack(group, device)
            total += base.model.summed_loss(packed).item()
            tokens += packed.labelled
    return total / tokens


def row_losses(base: Base, rows: Sequence[Row]) -> list[tuple[float, int]]:
    """The summed loss of each row, in nats, and over how many tokens, in their order."""
    numbers = {id(row): i for i, row in enumerate(rows)}
    found = [(0.0, 0)] * len(rows)
    with _evaluating(base) as device:
        for group in packs(rows, TOKENS):
            packed = pack(group, device)
            counts = _labelled(packed)
            for row, losses in zip(group, base.model.label_losses(packed).split(counts), strict=True):
                found[numbers[id(row)]] = float(losses.sum()), len(losses)
    return found


def _labelled(packed: Packed) -> list[int]:
    """The labelled positions of each row."""
    return [int((labels != IGNORED).sum()) for labels in packed.labels_T.split(packed.segments.lengths)]


@contextmanager
def _evaluating(base: Base) -> Iterator[torch.device]:
    """Inside the block the model is in evaluation mode, and no gradients are kept; the device it is on."""
    module = base.model.module
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield next(module.parameters()).device
    finally:
        module.train(was_training)
