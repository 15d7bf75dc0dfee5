"""OLoRA: W = QR, B the first columns of Q, A the first rows of R (Büyükakyüz 2024, https://arxiv.org/abs/2406.01775,
section 3)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from afina.lora.inits import LayerwiseInit

if TYPE_CHECKING:
    from afina.lora.layer import Size


class _Olora(LayerwiseInit):
    name = "olora"
    from_base = True

    def largest_rank(self, size: "Size") -> int:
        return min(size.outputs, size.inputs)

    def factors(self, w_OI: Tensor, rank: int, scaling: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        q_OR, r_RI = torch.linalg.qr(w_OI)
        return r_RI[:rank], q_OR[:, :rank]


INIT = _Olora()
