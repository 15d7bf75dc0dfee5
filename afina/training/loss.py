"""The cross-entropy of a model on rows, without gradients."""

import math
from collections.abc import Sequence

import torch

from afina.core.device import later, widest
from afina.core.layers import evaluation_mode
from afina.data.batch import pack, passes
from afina.data.template import Row
from afina.models.load import Base

TOKENS = 2048  # of a forward pass without gradients


def perplexity(loss: float) -> float:
    """exp(loss), of a loss in nats per token; kept finite."""
    return math.exp(min(loss, 700.0))


def device_of(base: Base) -> torch.device:
    return next(base.model.module.parameters()).device


def summed_loss(base: Base, rows: Sequence[Row]) -> tuple[float, int]:
    """The loss summed over all labelled tokens of `rows`, in nats, and how many these are."""
    device = device_of(base)
    total, tokens = torch.zeros((), dtype=widest(device), device=device), 0
    with torch.no_grad(), evaluation_mode(base.model.module):
        for group, _ in passes(rows, TOKENS, shares=base.model.shares):
            packed = pack([rows[i] for i in group], device, base.model.shares, base.facts.vocabulary)
            total += base.model.summed_loss(packed)  # read once, in the end: a card goes on with the next pass
            tokens += sum(map(len, packed.rows))
    return total.item(), tokens


def mean_loss(base: Base, rows: Sequence[Row]) -> float:
    """The loss per labelled token over all `rows`, in nats; its exponential is the perplexity."""
    total, tokens = summed_loss(base, rows)
    return total / tokens


def row_losses(base: Base, rows: Sequence[Row]) -> list[tuple[float, int]]:
    """The loss of each row summed over its labelled tokens, in nats, and how many these are, in the order of `rows`."""
    losses, reads = [(0.0, 0)] * len(rows), []
    with torch.no_grad(), evaluation_mode(base.model.module):
        for group, _ in passes(rows, TOKENS, shares=base.model.shares):
            packed = pack([rows[i] for i in group], device_of(base), base.model.shares, base.facts.vocabulary)
            reads.append((group, packed.rows, later(base.model.label_losses(packed))))
    for group, of_rows, read in reads:
        found = read()
        for i, labelled in zip(group, of_rows, strict=True):
            losses[i] = float(found[labelled].sum()), len(labelled)
    return losses
