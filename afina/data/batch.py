"""From rows to the tensors of one forward pass."""

import random
from collections.abc import Sequence

import torch

from afina.data.template import Row
from afina.engine.ops import Segments
from afina.models.model import IGNORED, Packed


def pack(rows: Sequence[Row], device: torch.device) -> Packed:
    """The rows one after another. Position t carries the label of token t + 1, so that logits and labels meet in place."""
    ids: list[int] = []
    labels: list[int] = []
    bounds = [0]
    for row in rows:
        ids += row.input_ids
        labels += [*row.labels[1:], IGNORED]
        bounds.append(len(ids))
    return Packed(torch.tensor(ids, device=device), torch.tensor(labels, device=device), Segments(tuple(bounds)))


def packs(rows: Sequence[Row], max_tokens: int, max_rows: int | None = None) -> list[list[Row]]:
    """The rows, by length, in groups of up to `max_tokens` tokens (a longer row goes alone) and `max_rows` rows."""
    groups: list[list[Row]] = []
    tokens = 0
    for row in sorted(rows, key=lambda row: len(row.input_ids)):
        tokens += len(row.input_ids)
        if not groups or tokens > max_tokens or len(groups[-1]) == max_rows:
            groups.append([])
            tokens = len(row.input_ids)
        groups[-1].append(row)
    return groups


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The order in which the `count` rows are seen in `epoch` (0 first): a shuffle that `seed` and `epoch` decide."""
    order = list(range(count))
    random.Random(f"{seed} {epoch}").shuffle(order)
    return order
