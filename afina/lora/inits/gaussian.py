"""Gaussian: A ~ N(0, 1/rank²), B = 0 (as in diffusers' LoRA and PEFT's `gaussian`)."""

import torch
from torch import Tensor

from afina.lora.inits import LayerwiseInit


class _Gaussian(LayerwiseInit):
    name = "gaussian"

    def factors(self, w_OI: Tensor, rank: int, scaling: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.randn(rank, w_OI.shape[1], generator=generator) / rank, torch.zeros(w_OI.shape[0], rank)


INIT = _Gaussian()
