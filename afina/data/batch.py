"""From rows to passes, and from the rows of a pass to the tensors of its forward pass."""

import hashlib
import random
from array import array
from collections.abc import Callable, Iterable, Sequence

import torch

from afina.data.template import Row
from afina.engine import forest
from afina.models.model import IGNORE_INDEX, Packed

# `Model.shares`: a number for each row of so many tokens; rows of the same share what they begin with.
Shares = Callable[[Sequence[int]], list[int] | None]


def pack(rows: Sequence[Row], device: torch.device, shares: Shares | None = None) -> Packed:
    """The rows in one pass: what several begin with once, where the model `shares`. A token carries the labels of those
    that follow it, so that logits and labels meet in place."""
    ids = [row.input_ids for row in rows]
    kinds = _kinds(rows, shares)
    found = forest.plant(ids, kinds)
    counts: dict[tuple[int, int], int] = {}  # of each label at each place, in how many rows it is
    of_rows: list[list[tuple[int, int]]] = []
    for i, row in enumerate(rows):
        pairs = zip(found.places(i), row.labels[1:], strict=False)
        of_rows.append([pair for pair in pairs if pair[1] != IGNORE_INDEX])
        for pair in of_rows[-1]:
            counts[pair] = counts.get(pair, 0) + 1
    numbers = {pair: n for n, pair in enumerate(sorted(counts))}
    at, labels = torch.tensor(list(numbers), dtype=torch.int64, device=device).reshape(-1, 2).unbind(1)
    weights = torch.tensor([float(counts[pair]) for pair in numbers], device=device)
    return Packed(
        torch.tensor(found.ids, device=device),
        found.segments,
        at.contiguous(),
        labels.contiguous(),
        None if kinds is None or not (weights > 1).any() else weights,
        tuple(torch.tensor([numbers[pair] for pair in pairs], dtype=torch.long) for pairs in of_rows),
    )


def passes(
    rows: Sequence[Row], max_tokens: int, max_rows: int | None = None, shares: Shares | None = None
) -> list[forest.Group]:
    """The rows in groups for one pass each: `forest.groups`."""
    return forest.groups([row.input_ids for row in rows], _kinds(rows, shares), max_tokens, max_rows)


def _kinds(rows: Sequence[Row], shares: Shares | None) -> list[int] | None:
    return None if shares is None else shares([len(row.input_ids) for row in rows])


def epoch_order(count: int, seed: int, epoch: int, prompts: Sequence[int] | None = None) -> list[int]:
    """The order in which the `count` rows are seen in `epoch` (0 first): a shuffle that `seed` and `epoch` decide.
    Rows of the same of `prompts` come together, with the first of them."""
    order = list(range(count))
    random.Random(f"{seed} {epoch}").shuffle(order)
    if prompts is not None:
        first: dict[int, int] = {}
        for at, row in enumerate(order):
            first.setdefault(prompts[row], at)
        order.sort(key=lambda row: first[prompts[row]])
    return order


def numbered(prompts: Iterable[Sequence[int]]) -> list[int]:
    """A number for each of `prompts` (token ids); the same for the same."""
    numbers: dict[bytes, int] = {}
    digests = (hashlib.blake2b(array("q", prompt).tobytes(), digest_size=16).digest() for prompt in prompts)
    return [numbers.setdefault(digest, len(numbers)) for digest in digests]
