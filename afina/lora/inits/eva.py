"""EVA: A spans what a layer's inputs vary in most (Paischer et al. 2024, https://arxiv.org/abs/2410.07170, section 3).

    X (tokens, in) = U S Vᵀ,   A = the first rows of Vᵀ,   B = 0

The decomposition is kept up from batch to batch in as many rows as are wanted. With `rho` > 1 the ranks are shared out anew: all
layers' components are sorted by their share of their layer's variance, s²/‖X‖², and the best win, up to rho · rank a layer.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from afina.core.layers import replace
from afina.lora.inits.factors import largest
from afina.lora.layer import LoraLinear, Wrapper


class _Recorder(Wrapper):
    """Stands in a layer's place and keeps the largest components of its inputs: s·vᵀ as rows."""

    def __init__(self, base: Any, count: int) -> None:
        super().__init__(base)
        self._count = count
        self.rows = torch.empty(0)
        self.total = 0.0

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            flat = x.detach().reshape(-1, x.shape[-1]).float()
            self.total += float(flat.square().sum())
            stacked = torch.cat([self.rows.to(flat).reshape(-1, flat.shape[1]), flat])
            _, sizes, vt = largest(stacked, self._count)
            self.rows = sizes[:, None] * vt
        y: Tensor = self.base(x)
        return y


def start(model: nn.Module, layers: dict[str, LoraLinear], rho: float, calibrate: Callable[[], None]) -> None:
    """Runs the model by `calibrate` (forward passes over a few batches) and sets A, B and the rank of `layers` (path → layer)."""
    recorders = {path: _Recorder(layer.base, int(rho * layer.rank)) for path, layer in layers.items()}
    for path, recorder in recorders.items():
        replace(model, path, recorder)
    try:
        calibrate()
    finally:
        for path, layer in layers.items():
            replace(model, path, layer)
    sizes = {path: recorder.rows.norm(dim=1) for path, recorder in recorders.items()}
    shares = {path: size.square() / recorders[path].total for path, size in sizes.items()}
    for path, rank in share_out(shares, sum(layer.rank for layer in layers.values())).items():
        a = recorders[path].rows[:rank] / sizes[path][:rank, None]
        layers[path].start(a, torch.zeros(len(layers[path].lora_b), rank))


def share_out(shares: dict[str, Tensor], budget: int) -> dict[str, int]:
    """How many components each layer gets, of `budget` in all, the largest shares first and one at least."""
    ranked = sorted(((float(x), path, i) for path, all_ in shares.items() for i, x in enumerate(all_)), reverse=True)
    ranks = dict.fromkeys(shares, 1)
    left = budget - len(ranks)
    for _, path, i in ranked:
        if i and left > 0:
            ranks[path] += 1
            left -= 1
    return ranks
