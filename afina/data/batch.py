"""From rows to micro-batches, and from a micro-batch to the tensors of its forward pass."""

import random
from collections.abc import Sequence

import torch

from afina.data.template import Row
from afina.engine.grouping import grouped
from afina.engine.ops import Segments
from afina.models.model import IGNORE_INDEX, Packed


def pack(rows: Sequence[Row], device: torch.device) -> Packed:
    """The rows one after another. Position t carries the label of token t + 1, so that logits and labels meet in
    place."""
    ids: list[int] = []
    labels: list[int] = []
    bounds = [0]
    for row in rows:
        ids += row.input_ids
        labels += [*row.labels[1:], IGNORE_INDEX]
        bounds.append(len(ids))
    return Packed(torch.tensor(ids, device=device), torch.tensor(labels, device=device), Segments(tuple(bounds)))


def micro_batches(rows: Sequence[Row], max_tokens: int, max_rows: int | None = None) -> list[list[Row]]:
    """The rows in micro-batches of up to `max_tokens` tokens (a longer row goes alone) and `max_rows` rows.

    They are sorted by length: models that pad waste least, and the others see passes of like shape.
    """
    return grouped(sorted(rows, key=_length), _length, max_tokens, max_rows)


def _length(row: Row) -> int:
    return len(row.input_ids)


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The order in which the `count` rows are seen in `epoch` (0 first): a shuffle that `seed` and `epoch` decide."""
    order = list(range(count))
    random.Random(f"{seed} {epoch}").shuffle(order)
    return order
