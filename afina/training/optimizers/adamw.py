"""AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class AdamW:
    name = "adamw"
    moment_bytes = 8  # the running means of the gradient and of its square, in fp32
    master_bytes = 4
    step_cost = 1.0
    rate_factor = 1.0

    def build(self, groups: list[dict[str, Any]], factors: Sequence[tuple[Tensor, Tensor]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, fused=True)


OPTIMIZER = AdamW()
