"""Where rooms meet that do not know each other: what a layer shows of itself."""

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Quantised(Protocol):
    """A frozen layer whose weights are kept in few bits. Its `weight` is made anew whenever it is read, and cannot be trained."""

    def thawed(self) -> nn.Module:
        """The layer with ordinary numbers for weights."""
