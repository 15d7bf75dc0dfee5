"""What a pass holds: the distinct beginnings of its rows, as a forest of segments. T tokens, S segments.

Rows that begin alike are the same up to where they part: a causal model gives equal prefixes equal activations. Each
prefix is a segment, which begins where its parent ends; what follows is its children. A token attends to the tokens of
its own segment before it, and to all of its ancestors': to its row, as if it were alone. (docs/forests.md has a
picture; `engine.forest` makes them of rows.) Rows that share nothing are a forest of roots.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afina.core.device import sent

NO_PARENT = -1


class OnDevices:
    """What a pass has on the host, by names, and its layers need on a device."""

    def on(self, device: torch.device, name: str) -> Tensor:
        """The tensor called `name` on a device, sent there once, and without waiting for the device."""
        own: Tensor = getattr(self, name)
        if own.device == device:
            return own
        key = name, device
        if key not in self._sent:
            self._sent[key] = sent(own, device)
        return self._sent[key]

    @cached_property
    def _sent(self) -> dict[tuple[str, torch.device], Tensor]:
        return {}


@dataclass(frozen=True)
class Segments(OnDevices):
    """Segment s holds the tokens bounds[s] to bounds[s + 1] of the pass, and continues the segment parents[s], which
    stands before it with all that descends from it in between (pre-order); a root has `NO_PARENT`. Without `parents`
    all are roots. Raises `ValueError` for what is no such forest: kernels compute addresses from it.
    """

    bounds: tuple[int, ...]
    parents: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.bounds[0] != 0 or any(length < 0 for length in self.lengths):
            raise ValueError(f"the rows of a pack begin at {self.bounds[:10]} …, expected 0 and then no smaller number")
        if not self.parents:
            return
        if len(self.parents) != len(self.lengths):
            raise ValueError(f"{len(self.parents)} parents of {len(self.lengths)} segments")
        path: list[int] = []  # the segment before and its ancestors: one of them is the parent, or there is none
        for s, parent in enumerate(self.parents):
            while path and path[-1] != parent:
                path.pop()
            if parent != NO_PARENT and not path:
                raise ValueError(f"segment {s} continues {parent}, which is not on the way to the one before it")
            path.append(s)

    def and_a_root(self, tokens: int) -> "Segments":
        """With one more segment of its own."""
        return Segments((*self.bounds, self.bounds[-1] + tokens), (*self.parents, NO_PARENT) if self.parents else ())

    @cached_property
    def lengths(self) -> list[int]:
        return [b - a for a, b in pairwise(self.bounds)]

    @cached_property
    def longest(self) -> int:
        return max(self.lengths)

    @cached_property
    def starts(self) -> list[int]:
        """The position in its row at which each segment begins: how many tokens its ancestors have."""
        starts: list[int] = []
        for parent in self.parents or (NO_PARENT,) * len(self.lengths):
            starts.append(0 if parent == NO_PARENT else starts[parent] + self.lengths[parent])
        return starts

    @cached_property
    def ends(self) -> list[int]:
        """The position in its row at which each segment ends."""
        return [start + length for start, length in zip(self.starts, self.lengths, strict=True)]

    @cached_property
    def deepest(self) -> int:
        """Tokens of the longest row."""
        return max(self.ends)

    @cached_property
    def depths(self) -> list[int]:
        """How many ancestors each segment has."""
        depths: list[int] = []
        for parent in self.parents or (NO_PARENT,) * len(self.lengths):
            depths.append(0 if parent == NO_PARENT else depths[parent] + 1)
        return depths

    @cached_property
    def bounds_tensor(self) -> Tensor:
        return torch.tensor(self.bounds, dtype=torch.int32)

    @cached_property
    def starts_tensor(self) -> Tensor:
        return torch.tensor(self.starts, dtype=torch.int32)

    @cached_property
    def parents_tensor(self) -> Tensor:
        return torch.tensor(self.parents or (NO_PARENT,) * len(self.lengths), dtype=torch.int32)

    @cached_property
    def trees_tensor(self) -> Tensor:
        """The segments at which trees begin, and the number of segments."""
        roots = [s for s, parent in enumerate(self.parents) if parent == NO_PARENT] if self.parents else None
        return torch.tensor([*(range(len(self.lengths)) if roots is None else roots), len(self.lengths)]).int()

    @cached_property
    def lengths_S(self) -> Tensor:
        return self.bounds_tensor.diff()

    @cached_property
    def rows_T(self) -> Tensor:
        """The segment that each token belongs to."""
        return torch.from_numpy(np.repeat(np.arange(len(self.lengths)), self.lengths))

    @cached_property
    def places_T(self) -> Tensor:
        """Where each token stands in its segment."""
        return torch.arange(self.bounds[-1]) - self.bounds_tensor[self.rows_T]

    @cached_property
    def lengths_T(self) -> Tensor:
        """The length of the longest row that each token belongs to."""
        longest = list(self.ends)
        for s in range(len(self.parents) - 1, -1, -1):
            if (parent := self.parents[s]) != NO_PARENT:
                longest[parent] = max(longest[parent], longest[s])
        return torch.tensor(longest, dtype=torch.int32)[self.rows_T]

    @cached_property
    def positions_T(self) -> Tensor:
        """Where each token stands in its row."""
        return self.places_T.int() + self.starts_tensor[self.rows_T]

    @property
    def paths(self) -> "Segments":
        """Of each segment the tokens that its ancestors and it have, as a root of its own; itself where none has
        ancestors."""
        return self._paths or self

    @cached_property
    def _paths(self) -> "Segments | None":  # not itself: what refers to itself is freed late
        return Segments(tuple(accumulate(self.ends, initial=0))) if any(self.starts) else None

    @cached_property
    def along_paths(self) -> Tensor:
        """The number of each token of `paths` in the pass."""
        paths: list[np.ndarray[Any, Any]] = []
        for s, (start, parent) in enumerate(zip(self.starts, self.parents, strict=True)):
            own = np.arange(self.bounds[s], self.bounds[s + 1])
            paths.append(np.concatenate([paths[parent], own]) if start else own)
        return torch.from_numpy(np.concatenate(paths))
