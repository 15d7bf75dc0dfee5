"""The product of few rows with joined weights, where an implementation has one of its own (`Ops.few_rows`).

T rows, I inputs, O outputs of all layers together, r the rank of a layer's update.
"""

from typing import NamedTuple, Protocol

from torch import Tensor


class Part(NamedTuple):
    """A layer of the joined weights: so many `outputs`, its `weights` (O, I), or their blocks as rows of bytes in
    format `kind`, and its update where it has one: A (r, I), and s·B (O, r)."""

    outputs: int
    weights: Tensor
    kind: int | None
    a_RI: Tensor | None
    b_OR: Tensor | None


class FewRows(Protocol):
    """Holds what it was made of."""

    def product(self, x_TI: Tensor) -> Tensor:
        """y (T, O) of the layers side by side, their updates and biases included."""
