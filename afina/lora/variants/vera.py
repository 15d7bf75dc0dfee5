"""VeRA: two trained vectors a layer, and random matrices that all layers share (Kopiczko et al. 2024,
https://arxiv.org/abs/2310.11454, equation 2).

    y = W x + b ∘ B (d ∘ A x),   A (rank, widest in), B (widest out, rank) frozen, d (rank,) and b (out,) trained

A layer takes the first columns of A and rows of B that it has inputs and outputs. b starts at zero, d at 0.1.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afina.core.layers import is_conv1d
from afina.lora.layer import LoraLayer, Size


class Projections:
    """The A and B that all layers share."""

    def __init__(self, rank: int, inputs: int, outputs: int, generator: torch.Generator) -> None:
        self.a, self.b = torch.empty(rank, inputs), torch.empty(outputs, rank)
        for matrix in (self.a, self.b):
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5), generator=generator)


class VeraLinear(LoraLayer):
    """VeRA around a linear layer. x is (…, in), y (…, out)."""

    additive = False

    def __init__(self, base: Any, size: Size, shared: Projections) -> None:
        super().__init__(base, size)
        self.transposed = is_conv1d(base)
        self.shared = shared
        outputs, inputs = base.weight.shape[::-1] if self.transposed else base.weight.shape
        self.outputs, self.inputs = int(outputs), int(inputs)
        device = base.weight.device
        self.vera_lambda_d = nn.Parameter(torch.full((size.rank,), 0.1, device=device))
        self.vera_lambda_b = nn.Parameter(torch.zeros(self.outputs, device=device))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        if not self.enabled:
            return y
        a, b = (matrix.to(x) for matrix in self._matrices())
        low = F.linear(self.dropout(x), a) * self.vera_lambda_d.to(x.dtype)
        return y + F.linear(low, b) * self.vera_lambda_b.to(x.dtype)

    def _matrices(self) -> tuple[Tensor, Tensor]:
        return self.shared.a[:, : self.inputs], self.shared.b[: self.outputs]

    def tensors(self) -> dict[str, Tensor]:
        return {"vera_lambda_d": self.vera_lambda_d, "vera_lambda_b": self.vera_lambda_b}

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        a, b = (matrix.to(self.vera_lambda_b.device) for matrix in self._matrices())
        delta = (self.vera_lambda_b[:, None] * b) @ (self.vera_lambda_d[:, None] * a)
        merged: Tensor = self.base.weight.float() + (delta.T if self.transposed else delta)
        return merged
