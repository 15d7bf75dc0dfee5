"""PiSSA: s·BA = the `rank` largest singular components of W (Meng et al. 2024, https://arxiv.org/abs/2404.02948,
equations 2 and 3)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from afina.lora.inits import LayerwiseInit
from afina.lora.inits._decompositions import low_rank_factors

if TYPE_CHECKING:
    from afina.lora.layer import Size


class _Pissa(LayerwiseInit):
    name = "pissa"
    from_base = True
    tuned = True

    def largest_rank(self, size: "Size") -> int:
        return min(size.outputs, size.inputs)

    def factors(self, w_OI: Tensor, rank: int, scaling: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return low_rank_factors(w_OI, rank, scaling)


INIT = _Pissa()
