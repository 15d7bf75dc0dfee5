"""The gradients of a step, accumulated over its micro-batches."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from afina.core.device import widest
from afina.core.world import SINGLE, World
from afina.models.load import Base
from afina.training.loss import device_of
from afina.training.objectives import Objective, U


class MicroBatch(NamedTuple):
    """A part of a `step`, as it is made on the host: the units of the whole step, what the objective's loss reads of
    its own, and its tokens. A process that has no units of a step has one without a batch."""

    step: int
    units: Sequence[Any]
    batch: Any
    tokens: int


def micro_batches(
    base: Base, units: Sequence[U], objective: Objective[U], max_tokens: int, max_units: int | None, step: int = 0
) -> Iterator[MicroBatch]:
    """Those of a step, of up to `max_tokens` tokens and `max_units` units each."""
    for numbers, _ in objective.passes(base, units, max_tokens, max_units):
        group = [units[i] for i in numbers]
        yield MicroBatch(step, units, objective.batch(base, group), sum(objective.lengths(group)))
    if not units:
        yield MicroBatch(step, units, None, 0)


def gradients(
    base: Base, units: Sequence[U], objective: Objective[U], max_tokens: int, max_units: int | None = None,
    world: World = SINGLE,
) -> tuple[Tensor, int]:  # fmt: skip
    """Adds the gradients of the mean loss over the `units` of all processes; that loss (a scalar on the device), and
    the tokens read.

    The units go in micro-batches of up to `max_tokens` tokens and `max_units` units, with the result of a single one.
    """
    made = micro_batches(base, units, objective, max_tokens, max_units)
    return add_gradients(base, units, made, objective, world)


def add_gradients(
    base: Base, units: Sequence[U], made: Iterable[MicroBatch], objective: Objective[U], world: World = SINGLE,
    factor: Tensor | None = None,
) -> tuple[Tensor, int]:  # fmt: skip
    """`gradients`, of the micro-batches of the units that were `made`, times a `factor`. Nothing is read from the
    device: while it computes one, the next is asked of it."""
    device = device_of(base)
    weight = world.sum(sum(objective.weight(unit) for unit in units))
    loss, tokens = torch.zeros((), dtype=widest(device), device=device), 0
    for each in made:
        if each.batch is None:
            continue
        part = objective.loss(base, each.batch) / weight
        part.backward(factor)
        loss += part.detach()
        tokens += each.tokens
    world.sum_gradients(p for p in base.model.module.parameters() if p.requires_grad)
    return world.sum(loss), world.sum(tokens)
