"""From rows to passes, and from the rows of a pass to the tensors of its forward pass."""

import hashlib
import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor

from afina.core.device import host_buffer, overlaps, use
from afina.core.errors import BaseModelError
from afina.data.template import Row
from afina.engine import forest
from afina.engine.ops import Segments
from afina.models.model import IGNORE_INDEX, Packed

T = TypeVar("T")
# `Model.shares`: a number for each row of so many tokens; rows of the same share what they begin with.
Shares = Callable[[Sequence[int]], list[int] | None]


@dataclass(frozen=True)
class HostPack:
    """A pass as it is made on the host: all its whole numbers in one buffer, so that a card fetches them in one copy.

    Of M places at which anything is labelled, N labels: the token ids (T), the places in order (M), of each label (N)
    its place, which of the M that is, itself, and in how many rows it is. Then for each row which of the N it has.
    """

    numbers: Tensor
    sizes: tuple[int, ...]
    segments: Segments
    weighted: bool
    rows: tuple[Tensor, ...]

    def to(self, device: torch.device) -> Packed:
        """The pass on `device`. Nobody waits for the copy, where its memory is made for that (Apple's MPS reads the
        host's later, when other numbers may stand there)."""
        numbers = self.numbers.to(device, non_blocking=overlaps(device))
        ids_T, at_M, at_N, place_N, labels_N, counts_N = numbers.split(self.sizes)
        weights_N = counts_N.float() if self.weighted else None
        return Packed(ids_T, self.segments, at_N, labels_N, at_M, place_N, weights_N, self.rows)


def pack(
    rows: Sequence[Row], device: torch.device, shares: Shares | None = None, vocabulary: int | None = None
) -> Packed:
    """The rows in one pass, on `device`: see `host_pack`."""
    return host_pack(rows, device, shares, vocabulary).to(device)


def host_pack(
    rows: Sequence[Row], device: torch.device, shares: Shares | None = None, vocabulary: int | None = None
) -> HostPack:
    """The rows in one pass: what several begin with once, where the model `shares`. A token carries the labels of those
    that follow it, so that logits and labels meet in place. Made on the host, in memory from which `device` fetches
    it. Raises `BaseModelError` for a token beyond the base's `vocabulary`, at which a card would end the process."""
    ids = [row.input_ids for row in rows]
    kinds = _kinds(rows, shares)
    found = forest.plant(ids, kinds)
    if vocabulary and (most := max(found.ids)) >= vocabulary:
        where = next(row.location for row in rows if most in row.input_ids)
        raise BaseModelError(
            f"{where}: token {most:,} is beyond the {vocabulary:,} that the base has embeddings for",
            "choose a base whose tokenizer and weights agree",
        )
    counts: dict[tuple[int, int], int] = {}  # of each label at each place, in how many rows it is
    of_rows: list[list[tuple[int, int]]] = []
    for i, row in enumerate(rows):
        pairs = zip(found.places(i), row.labels[1:], strict=False)
        of_rows.append([pair for pair in pairs if pair[1] != IGNORE_INDEX])
        for pair in of_rows[-1]:
            counts[pair] = counts.get(pair, 0) + 1
    labelled = sorted(counts)
    numbers = {pair: n for n, pair in enumerate(labelled)}
    places = {at: m for m, at in enumerate(dict.fromkeys(at for at, _ in labelled))}
    parts = (
        found.ids,
        list(places),
        [at for at, _ in labelled],
        [places[at] for at, _ in labelled],
        [label for _, label in labelled],
        [counts[pair] for pair in labelled],
    )
    return HostPack(
        host_buffer(list(chain.from_iterable(parts)), device),
        tuple(map(len, parts)),
        found.segments,
        kinds is not None and any(count > 1 for count in counts.values()),
        tuple(torch.tensor([numbers[pair] for pair in pairs], dtype=torch.long) for pairs in of_rows),
    )


class Ahead(Iterator[T]):
    """What `items` gives. Where `device` computes on its own time, a thread makes each item while the one before it is
    worked on; else it is made when it is asked for."""

    def __init__(self, items: Iterator[T], device: torch.device) -> None:
        self._items = items
        self._thread = ThreadPoolExecutor(1, "afina-ahead", use, (device,)) if overlaps(device) else None
        self._next: Future[T | None] | None = None

    def __next__(self) -> T:
        if self._thread is None:
            return next(self._items)
        found = (self._next or self._thread.submit(next, self._items, None)).result()
        if found is None:
            raise StopIteration
        self._next = self._thread.submit(next, self._items, None)
        return found

    def settle(self) -> None:
        """Waits until nothing is being made: what that reads may be changed after it."""
        if self._next:
            wait([self._next])

    def close(self) -> None:
        if self._thread:
            self._thread.shutdown(cancel_futures=True)


def passes(
    rows: Sequence[Row], max_tokens: int, max_rows: int | None = None, shares: Shares | None = None
) -> list[forest.Group]:
    """The rows in groups for one pass each: `forest.groups`."""
    return forest.groups([row.input_ids for row in rows], _kinds(rows, shares), max_tokens, max_rows)


def _kinds(rows: Sequence[Row], shares: Shares | None) -> list[int] | None:
    return None if shares is None else shares([len(row.input_ids) for row in rows])


def epoch_order(
    count: int, seed: int, epoch: int, prompts: Sequence[int] | None = None, together: int = 1
) -> list[int]:
    """The order in which the `count` rows are seen in `epoch` (0 first): a shuffle that `seed` and `epoch` decide.
    Rows of the same of `prompts` come in blocks of `together`, each where the first of its rows was."""
    order = list(range(count))
    random.Random(f"{seed} {epoch}").shuffle(order)
    if prompts is None:
        return order
    blocks: list[list[int]] = []
    open_blocks: dict[int, list[int]] = {}
    for row in order:
        block = open_blocks.get(prompts[row])
        if block is None or len(block) == together:
            block = open_blocks[prompts[row]] = []
            blocks.append(block)
        block.append(row)
    return list(chain.from_iterable(blocks))


def numbered(prompts: Iterable[Sequence[int]]) -> list[int]:
    """A number for each of `prompts` (token ids); the same for the same."""
    numbers: dict[bytes, int] = {}
    digests = (hashlib.blake2b(array("q", prompt).tobytes(), digest_size=16).digest() for prompt in prompts)
    return [numbers.setdefault(digest, len(numbers)) for digest in digests]
