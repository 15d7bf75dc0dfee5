"""The small products of a LoRA adapter, in fused kernels where the processor multiplies pairs of bf16 numbers.

T tokens, O outputs, r the rank, R ranks of several adapters together, N any width.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from afina.engine import kernels
from afina.engine.kernels import Kernels


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
    """s·B of one adapter, ready for its three products: (T, r) with Bᵀ, (T, O) with B, and (T, O)ᵀ with (T, r)."""

    def __init__(self, adapter: LowRankLayer, outputs: int, dtype: torch.dtype, fused: Kernels | None) -> None:
        self.rank, self._scaling = adapter.lora_b.shape[1], adapter.scaling
        self._fused: Kernels | None = None
        if (
            fused is not None
            and fused.multiplies_pairs
            and dtype == torch.bfloat16
            and self.rank % kernels.LANES == 0
            and outputs % (2 * kernels.LANES) == 0
        ):
            self._fused = fused
            b = adapter.lora_b.detach().contiguous()
            kernels.expect(torch.float32, (b, (outputs, self.rank)))
            self._outputs = outputs
            self._by_rank, self._by_output = (b.new_empty(b.numel(), dtype=dtype) for _ in range(2))
            fused.call("low_rank_pack", b, self._scaling, self._by_rank, self._by_output, *b.shape, dtype=dtype)
        else:
            self._b = (adapter.lora_b.detach() * self._scaling).to(dtype)

    @property
    def is_fused(self) -> bool:
        return self._fused is not None

    def _expect(self, y_TO: Tensor, low_TR: Tensor) -> None:
        kernels.expect(torch.bfloat16, (y_TO, (len(y_TO), self._outputs)), (low_TR, (len(y_TO), self.rank)))

    def add(self, y_TO: Tensor, low_TR: Tensor) -> None:
        """y += low (s·B)ᵀ, in place."""
        if self._fused is None:
            y_TO.addmm_(low_TR, self._b.T)
            return
        self._expect(y_TO, low_TR)
        self._fused.call(
            "low_rank_add", y_TO, y_TO.stride(0), low_TR, low_TR.stride(0), self._by_rank, *y_TO.shape, self.rank,
            torch.get_num_threads(),
        )  # fmt: skip

    def project(self, dy_TO: Tensor, dlow_TR: Tensor) -> None:
        """dlow = dy (s·B), in place."""
        if self._fused is None:
            dlow_TR.copy_(dy_TO @ self._b)
            return
        self._expect(dy_TO, dlow_TR)
        self._fused.call(
            "low_rank_project", dy_TO, dy_TO.stride(0), self._by_output, dlow_TR, dlow_TR.stride(0),
            *dy_TO.shape, self.rank, torch.get_num_threads(),
        )  # fmt: skip

    def gradient(self, dy_TO: Tensor, low_TR: Tensor) -> Tensor:
        """dB = s·dyᵀ low, (O, r) in fp32."""
        return outer_product(dy_TO, low_TR, self._scaling, self._fused)


def outer_product(x_TN: Tensor, low_TR: Tensor, scale: float, fused: Kernels | None) -> Tensor:
    """scale · xᵀ low, (N, R) in fp32."""
    if fused is None:
        return (x_TN.T @ low_TR).float().mul_(scale)
    rows, (width, ranks) = len(x_TN), (x_TN.shape[1], low_TR.shape[1])
    kernels.expect(torch.bfloat16, (x_TN, (rows, width)), (low_TR, (rows, ranks)))
    if width % kernels.LANES or ranks % kernels.LANES:
        raise IndexError(f"a kernel multiplies whole vectors of {kernels.LANES} numbers, not {width} by {ranks}")
    out = torch.empty(width, ranks)
    fused.call(
        "low_rank_outer", x_TN, x_TN.stride(0), low_TR, low_TR.stride(0), out, scale, *x_TN.shape, out.shape[1],
        torch.get_num_threads(),
    )  # fmt: skip
    return out
