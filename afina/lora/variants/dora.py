"""DoRA: magnitude and direction are trained separately (Liu et al. 2024, https://arxiv.org/abs/2402.09353, equation 5).

    y = m ∘ (W x + s·BA x) / ‖W + s·BA‖,   ‖·‖ of each row (an output's weights), m trained, initialised to ‖W‖

The norm is treated as a constant in the gradient (section 4.3). It needs no (out, in) matrix:
‖w + s·bA‖² = ‖w‖² + 2s·b·(A w) + s²·b (AAᵀ) b for each row w of W and b of B.

Shapes: T tokens (in any number of leading dimensions), R rank, I inputs, O outputs.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from afina.lora.inits import INITS
from afina.lora.layer import ParameterCount, Target
from afina.lora.variants import Variant
from afina.lora.variants.lora import LoraLinear

if TYPE_CHECKING:
    from afina.lora.config import LoraConfig


class DoraLinear(LoraLinear):
    """DoRA around a linear layer. x is (…, in), y (…, out)."""

    def __init__(self, target: Target, generator: torch.Generator) -> None:
        super().__init__(target, generator)
        self.lora_magnitude = nn.Parameter(self.frozen_weight().float().norm(dim=1))

    @classmethod
    def parameter_count(cls, target: Target) -> ParameterCount:
        return ParameterCount(super().parameter_count(target).trained + target.size.outputs)

    def forward(self, x_TI: Tensor) -> Tensor:
        y_TO: Tensor = self.base(x_TI)
        if not self.enabled:
            return y_TO
        bias = self.base.bias
        direction_TO = (y_TO if bias is None else y_TO - bias) + self.update(x_TI)
        y_TO = direction_TO * (self.lora_magnitude / self.norm()).to(y_TO.dtype)
        return y_TO if bias is None else y_TO + bias

    @torch.no_grad()
    def norm(self) -> Tensor:
        """‖W + s·BA‖ of each row, (out,), in fp32."""
        w_OI, a_RI, b_OR = self.frozen_weight().float(), self.lora_a, self.lora_b
        cross_O = (w_OI @ a_RI.T * b_OR).sum(1)
        update_O = (b_OR @ (a_RI @ a_RI.T) * b_OR).sum(1)
        return (w_OI.square().sum(1) + 2 * self.scaling * cross_O + self.scaling**2 * update_O).clamp(min=0).sqrt()

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | {"lora_magnitude_vector": self.lora_magnitude}

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        merged_OI = (self.frozen_weight().float() + self.delta()) * (self.lora_magnitude / self.norm())[:, None]
        return merged_OI.T if self.transposed else merged_OI


class _Dora(Variant):
    name = "dora"
    layers = (DoraLinear,)
    peft_type = "LORA"
    tuned = True

    def refuses(self, config: "LoraConfig") -> Iterator[str]:
        if INITS[config.init].from_base:
            yield f"init {config.init!r} changes what dora takes the magnitude of; use kaiming"

    def reads(self, raw: Mapping[str, Any]) -> bool:
        return super().reads(raw) and bool(raw.get("use_dora"))

    def to_peft(self, config: "LoraConfig", common: dict[str, Any]) -> dict[str, Any]:
        return super().to_peft(config, common) | {"use_dora": True}


VARIANT = _Dora()
