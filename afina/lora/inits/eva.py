"""EVA: A spans the directions in which a layer's inputs vary most (Paischer et al. 2024,
https://arxiv.org/abs/2410.07170, section 3).

    X (tokens, in) = U S Vᵀ,   A = the first rows of Vᵀ,   B = 0

The decomposition is updated from batch to batch, with as many rows as are wanted. With `eva_rho` > 1 the ranks are
redistributed: all layers' components are sorted by their share of their layer's variance, s²/‖X‖², and the largest are
kept, up to rho · rank per layer.

Shapes: T tokens, C components, R rank, I inputs, O outputs.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from afina.core.layers import replace
from afina.lora.inits import Init, Needs, Sources
from afina.lora.inits._decompositions import largest_components
from afina.lora.layer import Wrapper

if TYPE_CHECKING:
    from afina.lora.layer import Size
    from afina.lora.variants.lora import LoraLinear


class _Eva(Init):
    name = "eva"
    needs: Needs = "forward"
    settings = ("eva_rho",)

    def largest_rank(self, size: "Size") -> int:
        return min(size.outputs, size.inputs)

    def initialise(self, layers: "dict[str, LoraLinear]", sources: Sources) -> None:
        assert sources.calibrate is not None
        most = {path: int(sources.config.eva_rho * layer.rank) for path, layer in layers.items()}
        recorders = {path: _Recorder(layer.base, most[path]) for path, layer in layers.items()}
        for path, recorder in recorders.items():
            replace(sources.model, path, recorder)
        try:
            sources.calibrate()
        finally:
            for path, layer in layers.items():
                replace(sources.model, path, layer)
        sizes = {path: recorder.components_CI.norm(dim=1) for path, recorder in recorders.items()}
        shares = {path: size_C.square() / recorders[path].total for path, size_C in sizes.items()}
        for path, rank in redistribute(shares, sum(layer.rank for layer in layers.values())).items():
            a_RI = recorders[path].components_CI[:rank] / sizes[path][:rank, None]
            layers[path].set_factors(a_RI, torch.zeros(len(layers[path].lora_b), rank))


class _Recorder(Wrapper):
    """Takes a layer's place and keeps the largest components of its inputs: s·vᵀ as rows."""

    def __init__(self, base: Any, count: int) -> None:
        super().__init__(base)
        self._count = count
        self.components_CI = torch.empty(0)
        self.total = 0.0

    def forward(self, x_TI: Tensor) -> Tensor:
        with torch.no_grad():
            flat_TI = x_TI.detach().reshape(-1, x_TI.shape[-1]).float()
            self.total += float(flat_TI.square().sum())
            stacked = torch.cat([self.components_CI.to(flat_TI).reshape(-1, flat_TI.shape[1]), flat_TI])
            _, size_C, vt_CI = largest_components(stacked, self._count)
            self.components_CI = size_C[:, None] * vt_CI
        y_TO: Tensor = self.base(x_TI)
        return y_TO


def redistribute(shares: dict[str, Tensor], budget: int) -> dict[str, int]:
    """How many components each layer gets, of `budget` in all: the largest shares first, and at least one per layer."""
    ranked = sorted(((float(x), path, i) for path, all_ in shares.items() for i, x in enumerate(all_)), reverse=True)
    ranks = dict.fromkeys(shares, 1)
    left = budget - len(ranks)
    for _, path, i in ranked:
        if i and left > 0:
            ranks[path] += 1
            left -= 1
    return ranks


INIT = _Eva()
