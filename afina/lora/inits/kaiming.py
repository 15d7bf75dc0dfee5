"""Kaiming, the default: A uniform in ±1/√in, B = 0 (as in LoRA's reference implementation, and PEFT's default)."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from afina.lora.inits import Init, Sources

if TYPE_CHECKING:
    from afina.lora.variants.lora import LoraLinear


def kaiming_uniform(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """A matrix (rows, columns), uniform in ±1/√columns, in fp32."""
    matrix = torch.empty(rows, columns)
    nn.init.kaiming_uniform_(matrix, a=math.sqrt(5), generator=generator)
    return matrix


class _Kaiming(Init):
    name = "kaiming"
    sets_factors = False

    def initialise(self, layers: "dict[str, LoraLinear]", sources: Sources) -> None:
        return  # every layer is built with it


INIT = _Kaiming()
