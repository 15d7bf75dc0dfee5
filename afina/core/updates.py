"""Low-rank updates that come with each row of a batch, so that one batch has rows of several adapters and of the bare
base. Those who compute know them by this protocol alone; who holds which adapter is not their business.

I inputs, O outputs, r rank.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor


class Factors(NamedTuple):
    """The update scaling · B A of one linear layer; A is (r, I), B (O, r), in fp32."""

    a_RI: Tensor
    b_OR: Tensor
    scaling: float


class Updates(Protocol):
    """What one adapter adds to the linear layers of a base. Must not change while rows have it.

    `key` is a hash of what it holds: rows of equal keys compute the same. `factors` are by the dotted path of the
    layer in the base. An object is hashable and can be referred to weakly: what is made of it is freed with it."""

    @property
    def key(self) -> str: ...

    @property
    def factors(self) -> Mapping[str, Factors]: ...
