"""LoRA-FA: A stays as it was drawn, only B is trained (Zhang et al. 2023, https://arxiv.org/abs/2308.03303, section 3).

On disk it is an ordinary LoRA, and is read as one. An embedding, whose A starts at zero, is adapted as in LoRA.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from afina.lora.layer import ParameterCount, Target
from afina.lora.variants import Variant
from afina.lora.variants.lora import LoraEmbedding, LoraLinear


class FrozenALinear(LoraLinear):
    """LoRA around a linear layer, with a frozen A."""

    additive = True

    def __init__(self, target: Target, generator: torch.Generator) -> None:
        super().__init__(target, generator)
        self.lora_a.requires_grad_(False)

    @classmethod
    def parameter_count(cls, target: Target) -> ParameterCount:
        size = target.size
        return ParameterCount(size.rank * size.outputs, size.rank * size.inputs)

    def set_factors(self, a_RI: Tensor, b_OR: Tensor, from_base: bool = False) -> None:
        super().set_factors(a_RI, b_OR, from_base)
        self.lora_a.requires_grad_(False)


class _LoraFA(Variant):
    name = "lora_fa"
    layers = (FrozenALinear, LoraEmbedding)
    peft_type = "LORA"
    summable = True

    def reads(self, raw: Mapping[str, Any]) -> bool:
        return False  # a file does not say that A was frozen


VARIANT = _LoraFA()
