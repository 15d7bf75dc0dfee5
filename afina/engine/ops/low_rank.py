"""The small products of a LoRA adapter. T tokens, O outputs, r the rank, R ranks of several adapters together, M and N
any widths."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn


class LowRankLayer(Protocol):
    """What a layer that wraps another (`lora.LoraLinear`) must have, so that its products can be joined with
    others'."""

    base: Any
    additive: bool  # the output is base(x) + scaling · B(A x), nothing else
    lora_a: nn.Parameter
    lora_b: nn.Parameter
    scaling: float
    enabled: bool
    dropout: nn.Dropout


class LowRankUpdate:
    """s·B of one adapter, ready for two of its products: (T, r) with Bᵀ, and (T, O) with B."""

    def __init__(self, b_OR: Tensor, scaling: float, dtype: torch.dtype) -> None:
        self._b = (b_OR.detach() * scaling).to(dtype)

    def add(self, y_TO: Tensor, low_TR: Tensor) -> None:
        """y += low (s·B)ᵀ, in place."""
        y_TO.addmm_(low_TR, self._b.T)

    def project(self, dy_TO: Tensor, dlow_TR: Tensor) -> None:
        """dlow = dy (s·B), in place."""
        torch.mm(dy_TO, self._b, out=dlow_TR)


def outer_product_by_torch(left_TM: Tensor, right_TN: Tensor, scale: float) -> Tensor:
    """`Ops.outer_product` in torch on any device."""
    return (left_TM.T.float() @ right_TN.float()).mul_(scale)
