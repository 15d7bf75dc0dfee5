"""The mean loss of a model on rows."""

import math
from collections.abc import Sequence

import torch

from afina.base.load import Base
from afina.data.batch import pack, packs
from afina.data.template import Row

TOKENS = 2048  # a forward pass without gradients


def perplexity(loss: float) -> float:
    """exp(loss), of a loss in nats a token; kept finite."""
    return math.exp(min(loss, 700.0))


def row_losses(base: Base, rows: Sequence[Row]) -> list[float]:
    """The summed loss of each row, in nats."""
    return [mean_loss(base, [row]) * row.labelled for row in rows]


@torch.no_grad()
def mean_loss(base: Base, rows: Sequence[Row]) -> float:
    """The loss a labelled token over all `rows`, in nats; its exponential is the perplexity."""
    module = base.model.module
    was_training = module.training
    module.eval()
    device = next(module.parameters()).device
    total, tokens = 0.0, 0
    for group in packs(rows, TOKENS):
        packed = pack(group, device)
        total += base.model.summed_loss(packed).item()
        tokens += packed.labelled
    module.train(was_training)
    return total / tokens
