"""Where the rows of a packed batch begin and end. T tokens, S rows."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segments:
    """Row s of the pack holds tokens bounds[s] to bounds[s + 1]; positions restart in each row. Raises `ValueError`
    where bounds do not begin at 0, or fall."""

    bounds: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.bounds[0] != 0 or any(length < 0 for length in self.lengths):
            raise ValueError(f"the rows of a pack begin at {self.bounds[:10]} …, expected 0 and then no smaller number")

    @cached_property
    def lengths(self) -> list[int]:
        return [b - a for a, b in zip(self.bounds, self.bounds[1:], strict=False)]

    @cached_property
    def longest(self) -> int:
        return max(self.lengths)

    @cached_property
    def bounds_tensor(self) -> Tensor:
        return torch.tensor(self.bounds, dtype=torch.int32)

    @cached_property
    def lengths_S(self) -> Tensor:
        return self.bounds_tensor.diff()

    @cached_property
    def rows_T(self) -> Tensor:
        """The row that each token belongs to."""
        return torch.arange(len(self.bounds) - 1).repeat_interleave(self.lengths_S)

    @cached_property
    def lengths_T(self) -> Tensor:
        """The length of the row that each token belongs to."""
        return self.lengths_S[self.rows_T]

    @cached_property
    def positions_T(self) -> Tensor:
        return torch.arange(self.bounds[-1], dtype=torch.int32) - self.bounds_tensor[self.rows_T]
