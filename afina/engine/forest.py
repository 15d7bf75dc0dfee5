"""Makes the forest of segments (`ops.Segments`) of rows: what several rows begin with is there once.

Rows are sorted by their tokens, so that those that begin alike stand together; how long neighbours are alike says where
a trunk ends and its branches begin:

    a b c d e          a b c ┬ d e
    a b c d e    →           └ f ┬ g h
    a b c f g h                  └ i
    a b c f i          x y z
    x y z
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from afina.engine.grouping import grouped
from afina.engine.ops.segments import NO_PARENT, Segments

SHORTEST = 4  # tokens of a trunk: fewer are computed again for each branch, which takes no longer than another segment
Tokens = Sequence[int]


@dataclass(frozen=True)
class Forest:
    """The tokens `ids` of all segments, and for each row, in the order in which they were given, the segments that it
    consists of."""

    ids: list[int]
    segments: Segments
    rows: list[list[int]]

    def places(self, row: int) -> list[int]:
        """Where each token of a row stands in `ids`."""
        bounds = self.segments.bounds
        return [at for s in self.rows[row] for at in range(bounds[s], bounds[s + 1])]


def plant(rows: Sequence[Tokens], kinds: Sequence[int] | None) -> Forest:
    """The forest of the rows. Those of different `kinds` share nothing; where there are none, no rows do."""
    if kinds is None:
        bounds = tuple(accumulate(map(len, rows), initial=0))
        return Forest([token for row in rows for token in row], Segments(bounds), [[s] for s in range(len(rows))])
    order = _order(rows, kinds)
    same = _alike(rows, kinds, order)
    ids, bounds_, parents = list[int](), [0], list[int]()
    found: list[list[int]] = [[] for _ in rows]
    # Rows order[low:high] that are the same up to `begin`, where the segment `parent` ends: what is left to plant.
    todo = [(0, len(rows), NO_PARENT, 0)]
    while todo:
        low, high, parent, begin = todo.pop()
        if low == high:
            continue
        first = rows[order[low]]
        end, last = len(first), low + 1
        while last < high and (
            same[last] - begin >= SHORTEST or same[last] == len(first) == len(rows[order[last]]) == end
        ):
            end, last = min(end, same[last]), last + 1
        segment = parent
        if end > begin:
            segment = len(parents)
            parents.append(parent)
            ids += first[begin:end]
            bounds_.append(len(ids))
            for at in range(low, last):
                found[order[at]].append(segment)
        branches = low
        while branches < last and len(rows[order[branches]]) == end:  # rows that end here stand before longer ones
            branches += 1
        todo += [(last, high, parent, begin), (branches, last, segment, end)]
    return Forest(ids, Segments(tuple(bounds_), tuple(parents)), found)


class Group(NamedTuple):
    """Rows of one pass, by their numbers, and how many tokens are computed for them."""

    rows: list[int]
    tokens: int


def groups(
    rows: Sequence[Tokens], kinds: Sequence[int] | None, max_tokens: int, max_rows: int | None = None
) -> list[Group]:
    """The rows in groups for one pass each, of up to about `max_tokens` tokens that are computed (a longer row goes
    alone; less than `SHORTEST` tokens that rows share beyond a trunk are computed again, but not counted) and
    `max_rows` rows. Rows that begin alike stand together; where none share, those of like length do: models that pad
    waste least, and the others see passes of like shape."""
    lengths = [len(row) for row in rows]
    if kinds is None:
        by_length = sorted(range(len(rows)), key=lengths.__getitem__)
        alone = grouped(by_length, lengths.__getitem__, max_tokens, max_rows)
        return [Group(group, sum(lengths[i] for i in group)) for group in alone]
    order = _order(rows, kinds)
    found: list[Group] = []
    for i, same in zip(order, _alike(rows, kinds, order), strict=True):
        new = lengths[i] - (same if same >= SHORTEST else 0)
        if not found or found[-1].tokens + new > max_tokens or len(found[-1].rows) == max_rows:
            found.append(Group([i], lengths[i]))
        else:
            found[-1] = Group([*found[-1].rows, i], found[-1].tokens + new)
    return found


def alike(first: Tokens, second: Tokens) -> int:
    """How many tokens both begin with."""
    shorter = min(len(first), len(second))
    different = np.flatnonzero(np.asarray(first[:shorter]) != np.asarray(second[:shorter]))
    return int(different[0]) if len(different) else shorter


def _order(rows: Sequence[Tokens], kinds: Sequence[int]) -> list[int]:
    return sorted(range(len(rows)), key=lambda i: (kinds[i], rows[i]))


def _alike(rows: Sequence[Tokens], kinds: Sequence[int], order: Sequence[int]) -> list[int]:
    """How many tokens each row of `order` begins with that the one before it begins with, too."""
    pairs = pairwise(order)
    return [0, *(alike(rows[a], rows[b]) if kinds[a] == kinds[b] else 0 for a, b in pairs)][: len(order)]
