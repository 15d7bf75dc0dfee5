"""From rows to the tensors of one forward pass."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from afina.data.template import IGNORED, Row


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right: B rows of T tokens. `labels_BT` stand at the position that predicts them (shifted)."""

    ids_BT: Tensor
    mask_BT: Tensor
    labels_BT: Tensor
    tokens: int
    labelled: int


def collate(rows: Sequence[Row], pad_id: int, device: torch.device) -> Batch:
    """One batch of `rows`. Position t carries the label of token t + 1, so that logits and labels meet in place."""
    width = max(len(row.input_ids) for row in rows)
    shape = (len(rows), width)
    ids_BT = torch.full(shape, pad_id)
    mask_BT = torch.zeros(shape, dtype=torch.long)
    labels_BT = torch.full(shape, IGNORED)
    for i, row in enumerate(rows):
        n = len(row.input_ids)
        ids_BT[i, :n] = torch.tensor(row.input_ids)
        mask_BT[i, :n] = 1
        labels_BT[i, : n - 1] = torch.tensor(row.labels[1:])
    tokens = int(mask_BT.sum())
    labelled = int((labels_BT != IGNORED).sum())
    return Batch(ids_BT.to(device), mask_BT.to(device), labels_BT.to(device), tokens, labelled)


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The order in which the `count` rows are seen in `epoch` (0 first): a shuffle that `seed` and `epoch` decide."""
    order = list(range(count))
    random.Random(f"{seed} {epoch}").shuffle(order)
    return order


def by_length(rows: Sequence[Row], size: int) -> list[list[Row]]:
    """The rows in batches of `size`, of similar length each, for passes whose order does not matter."""
    ordered = sorted(rows, key=lambda row: len(row.input_ids))
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]
