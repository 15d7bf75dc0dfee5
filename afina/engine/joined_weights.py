"""The frozen weights of joined layers: in memory at full precision, or in blocks that are dequantised when a product
needs them.

T tokens, I inputs, O outputs (of all layers together), R ranks of their adapters. Ŵ is (O + R, I): the layers'
weights, and below them their adapters' A.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from afina.engine import blocks
from afina.engine.blocks import BlockLinear, Blocks
from afina.engine.layers import Conv1D
from afina.engine.ops.by_torch import Ops


def is_transposed(layer: Any) -> bool:
    """Whether the layer's weight is (inputs, outputs)."""
    return isinstance(layer, Conv1D)


def weight_OI(layer: Any) -> Tensor:
    weight: Tensor = layer.weight
    return weight.T if is_transposed(layer) else weight


def output_sizes(frozen: list[Any]) -> list[int]:
    return [layer.nf if is_transposed(layer) else layer.out_features for layer in frozen]


def input_size(layer: Any) -> int:
    return int(weight_OI(layer).shape[1] if is_transposed(layer) else layer.in_features)


def storage_of(layer: Any) -> Tensor:
    """The tensor that holds a layer's weights: the weight itself, or its blocks."""
    weight = layer._parameters.get("weight")
    storage: Tensor = layer.blocks.data if weight is None else weight
    return storage


def dtype_of(layer: Any) -> torch.dtype:
    """The dtype that the layer computes with."""
    dtype: torch.dtype = layer.blocks.dtype if isinstance(layer, BlockLinear) else layer.weight.dtype
    return dtype


class DenseWeights:
    """Ŵ in memory."""

    def __init__(self, frozen: list[Any], joined: Tensor) -> None:
        self.joined = joined
        self._outputs = output_sizes(frozen)

    def product(self, x_TI: Tensor, bias: Tensor | None) -> Tensor:
        """x Ŵᵀ, (T, O + R)."""
        return F.linear(x_TI, self.joined, bias)

    def product_back(self, dy_TO: Tensor) -> Tensor:
        """dy Ŵ, (T, I)."""
        return dy_TO @ self.joined

    def stored(self) -> list[tuple[Tensor, int | None]]:
        """Each layer's weights, and their format: None, for they are numbers."""
        return [(weights, None) for weights in self.joined[: sum(self._outputs)].split(self._outputs)]


class QuantisedWeights:
    """Ŵ dequantised from the layers' blocks, into the scratch that all layers share, whenever a product needs it."""

    def __init__(self, frozen: list[Any], low_RI: Tensor, ops: Ops) -> None:
        self._frozen, self._low, self._ops = frozen, low_RI, ops
        alone = len(frozen) == 1 and not len(low_RI)
        # Too large to be dequantised at one time: the output head.
        self._large: Blocks | None = frozen[0].blocks if alone and frozen[0].blocks.numel() > blocks.TILE else None

    @contextmanager
    def _dequantised(self) -> Iterator[Tensor]:
        outputs = output_sizes(self._frozen)
        like = next(layer.blocks for layer in self._frozen if isinstance(layer, BlockLinear))
        with blocks.scratch(sum(outputs) + len(self._low), self._low.shape[1], like) as out:
            at = 0
            for layer, n in zip(self._frozen, outputs, strict=True):
                if isinstance(layer, BlockLinear):
                    layer.blocks.dequantise_into(out[at : at + n], self._ops)
                else:
                    out[at : at + n] = weight_OI(layer)
                at += n
            out[at:] = self._low
            yield out

    def product(self, x_TI: Tensor, bias: Tensor | None) -> Tensor:
        """x Ŵᵀ, (T, O + R)."""
        if self._large is None:
            with self._dequantised() as joined:
                return F.linear(x_TI, joined, bias)
        y = self._large.product(x_TI)
        return y if bias is None else y + bias

    def product_back(self, dy_TO: Tensor) -> Tensor:
        """dy Ŵ, (T, I)."""
        if self._large is not None:
            return self._large.product_back(dy_TO)
        with self._dequantised() as joined:
            return dy_TO @ joined

    def stored(self) -> list[tuple[Tensor, int | None]]:
        """Each layer's weights or their blocks, and the format of these."""
        return [
            (layer.blocks.data, layer.blocks.kind) if isinstance(layer, BlockLinear) else (weight_OI(layer), None)
            for layer in self._frozen
        ]
