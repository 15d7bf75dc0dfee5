"""How the frozen weights of joined layers lie in memory: as numbers, or in blocks that are written out when they are needed.

T tokens, I inputs, O outputs (of all layers together), R ranks of their adapters.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afina.engine import blocks, kernels
from afina.engine.blocks import BlockLinear
from afina.engine.kernels import Kernels


class Conv1D(nn.Module):
    """A linear layer whose weight is (inputs, outputs), as GPT-2 stores it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.T, self.bias)


def transposed(layer: Any) -> bool:
    return isinstance(layer, Conv1D)


def row_view(layer: Any) -> Tensor:
    weight: Tensor = layer.weight
    return weight.T if transposed(layer) else weight


def output_sizes(frozen: list[Any]) -> list[int]:
    return [layer.nf if transposed(layer) else layer.out_features for layer in frozen]


def input_size(layer: Any) -> int:
    return int(row_view(layer).shape[1] if transposed(layer) else layer.in_features)


def kept_of(layer: Any) -> Tensor:
    """What is kept in memory of a layer's weights: numbers or blocks."""
    weight = layer._parameters.get("weight")
    kept: Tensor = layer.blocks.data if weight is None else weight
    return kept


def number_type(layer: Any) -> torch.dtype:
    dtype: torch.dtype = layer.blocks.dtype if isinstance(layer, BlockLinear) else layer.weight.dtype
    return dtype


class Held:
    """Ŵ in memory."""

    def __init__(self, frozen: list[Any], store: Tensor) -> None:
        self.store = store
        self.plain = store.stride(1) == 1
        self._outputs = output_sizes(frozen)

    def product(self, x_TI: Tensor, bias: Tensor | None) -> Tensor:
        """x Ŵᵀ, (T, outputs and ranks)."""
        return F.linear(x_TI, self.store, bias)

    def back(self, dy_TO: Tensor) -> Tensor:
        """dy Ŵ, (T, I)."""
        return dy_TO @ self.store

    def places(self) -> list[tuple[int, int, int]]:
        """Address, bytes a row and format of each layer's weights."""
        row = self.store.stride(0) * self.store.element_size()
        at = self.store.data_ptr()
        return [(at + row * sum(self._outputs[:i]), row, kernels.NUMBERS) for i in range(len(self._outputs))]


class Unpacked:
    """Ŵ written out from the layers' blocks into the scratch that all layers share, whenever it is needed."""

    def __init__(self, frozen: list[Any], low_RI: Tensor, fused: Kernels | None) -> None:
        self._frozen, self._low, self._fused = frozen, low_RI, fused
        self.plain = all(isinstance(layer, BlockLinear) or not transposed(layer) for layer in frozen)
        alone = len(frozen) == 1 and not len(low_RI)
        # Too large to be written out at one time: the output head.
        self._large = frozen[0].blocks if alone and frozen[0].blocks.numel() > blocks.TILE else None

    def _numbers(self) -> Tensor:
        outputs = output_sizes(self._frozen)
        like = next(layer.blocks for layer in self._frozen if isinstance(layer, BlockLinear))
        out = blocks.scratch(sum(outputs) + len(self._low), self._low.shape[1], like)
        at = 0
        for layer, n in zip(self._frozen, outputs, strict=True):
            if isinstance(layer, BlockLinear):
                layer.blocks.write(out[at : at + n], self._fused)
            else:
                out[at : at + n] = row_view(layer)
            at += n
        out[at:] = self._low
        return out

    def product(self, x_TI: Tensor, bias: Tensor | None) -> Tensor:
        if self._large is None:
            return F.linear(x_TI, self._numbers(), bias)
        y = blocks.product(x_TI, self._large)
        return y if bias is None else y + bias

    def back(self, dy_TO: Tensor) -> Tensor:
        return dy_TO @ self._numbers() if self._large is None else blocks.product_back(dy_TO, self._large)

    def places(self) -> list[tuple[int, int, int]]:
        found = []
        for layer in self._frozen:
            kept = kept_of(layer)
            kind = layer.blocks.kind if isinstance(layer, BlockLinear) else kernels.NUMBERS
            found.append((kept.data_ptr(), kept.stride(0) * kept.element_size(), kind))
        return found
