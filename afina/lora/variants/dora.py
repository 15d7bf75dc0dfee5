"""DoRA: magnitude and direction apart (Liu et al. 2024, https://arxiv.org/abs/2402.09353, equation 5).

    y = m ∘ (W x + s·BA x) / ‖W + s·BA‖,   ‖·‖ of each row (an output's weights), m trained, beginning with ‖W‖

The norm is taken as a constant in the gradient (section 4.3). It costs no (out, in) matrix:
‖w + s·bA‖² = ‖w‖² + 2s·b·(A w) + s²·b (AAᵀ) b for each row w of W and b of B.
"""

from typing import Any

import torch
from torch import Tensor, nn

from afina.lora.layer import LoraLinear, Size


class DoraLinear(LoraLinear):
    """DoRA around a linear layer. x is (…, in), y (…, out)."""

    additive = False

    def __init__(self, base: Any, size: Size, generator: torch.Generator) -> None:
        super().__init__(base, size, generator)
        self.lora_magnitude = nn.Parameter(self.frozen_weight().float().norm(dim=1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        if not self.enabled:
            return y
        bias = self.base.bias
        direction = (y if bias is None else y - bias) + self.update(x)
        y = direction * (self.lora_magnitude / self.norm()).to(y.dtype)
        return y if bias is None else y + bias

    @torch.no_grad()
    def norm(self) -> Tensor:
        """‖W + s·BA‖ of each row, (out,), in fp32."""
        w, a, b = self.frozen_weight().float(), self.lora_a, self.lora_b
        crossed = (w @ a.T * b).sum(1)
        own = (b @ (a @ a.T) * b).sum(1)
        return (w.square().sum(1) + 2 * self.scaling * crossed + self.scaling**2 * own).clamp(min=0).sqrt()

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | {"lora_magnitude_vector": self.lora_magnitude}

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        merged = (self.frozen_weight().float() + self.delta()) * (self.lora_magnitude / self.norm())[:, None]
        return merged.T if self.transposed else merged
