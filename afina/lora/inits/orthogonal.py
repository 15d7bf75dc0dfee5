"""Orthogonal: A and B from the odd and even rows of one orthogonal matrix, so that BA = 0 though neither is zero.

    Q (rank, rank) orthogonal,   A = (X Q_odd)ᵀ / 10,   B = (Y Q_even) / 10,   X and Y ~ N(0, 1)

(D. Tamma 2024, https://datta0.github.io/posts/rethink-lora-init/). The rank is even.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from afina.lora.inits import LayerwiseInit

if TYPE_CHECKING:
    from afina.lora.config import LoraConfig


class _Orthogonal(LayerwiseInit):
    name = "orthogonal"

    def refuses(self, config: "LoraConfig") -> Iterator[str]:
        if any(rank % 2 for rank in (config.rank, *config.rank_pattern.values())):
            yield "init 'orthogonal' needs even ranks"

    def factors(self, w_OI: Tensor, rank: int, scaling: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        q_RR = torch.linalg.qr(torch.randn(rank, rank, generator=generator)).Q
        a_RI = (torch.randn(w_OI.shape[1], rank // 2, generator=generator) @ q_RR[0::2]).T / 10
        b_OR = torch.randn(w_OI.shape[0], rank // 2, generator=generator) @ q_RR[1::2] / 10
        return a_RI, b_OR


INIT = _Orthogonal()
