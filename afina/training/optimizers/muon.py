"""Muon: the factors of low-rank updates move along an orthogonalised momentum, other parameters by AdamW (Jordan et al.
2024, https://kellerjordan.github.io/posts/muon/; scaled as in Liu et al. 2025, https://arxiv.org/abs/2502.16982,
equation 4).

    M ← μM + (1 − μ)∇,    W ← W − η · 0.2 √max(rows, columns) · UVᵀ    where (1 − μ)∇ + μM = UΣVᵀ

so that all directions are learned at the same speed. The scale makes the step's entries as large as AdamW's, whose
learning rates therefore suit. UVᵀ comes from five steps of Newton and Schulz, X ← (aI + bXXᵀ + c(XXᵀ)²) X, which bring
the singular values near to 1 (0.7 to 1.2). X = PX₀ with P (R, R) throughout, and XXᵀ = P(X₀X₀ᵀ)P, so the steps are
taken on matrices of the rank's size alone. torch.optim.Muon takes them one factor after another, in bf16. N factors of
a shape, R rank, X inputs or outputs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from afina.training.optimizers._factors import FactorOptimizer, Pair
from afina.training.optimizers.adamw import AdamW

_MOMENTUM = 0.95
_STEPS, _A, _B, _C = 5, 3.4445, -4.7750, 2.0315


def orthogonalised(x_NRX: Tensor) -> Tensor:
    """x of (N, R, X), R ≤ X, with singular values near to 1; zeros stay zeros."""
    x_NRX = x_NRX / x_NRX.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    one_RR = torch.eye(x_NRX.shape[1], dtype=x_NRX.dtype, device=x_NRX.device)
    gram_NRR, whole_NRR = x_NRX @ x_NRX.mT, one_RR
    for _ in range(_STEPS):
        p_NRR = _A * one_RR + _B * gram_NRR + _C * gram_NRR @ gram_NRR
        gram_NRR, whole_NRR = p_NRR @ gram_NRR @ p_NRR, p_NRR @ whole_NRR
    return whole_NRR @ x_NRX


class _Muon(FactorOptimizer):
    def change(self, a_factors: list[Tensor], b_factors: list[Tensor]) -> None:
        for factors in (a_factors, b_factors):
            rows, columns = factors[0].shape
            now = self.gradients(factors)
            momentum = self.kept(factors, "momentum", rows, columns).lerp(now, 1 - _MOMENTUM)
            self.keep(factors, momentum=momentum)
            ahead = now.lerp(momentum, _MOMENTUM)
            step = orthogonalised(ahead) if rows <= columns else orthogonalised(ahead.mT).mT
            self.move(factors, 0.2 * max(rows, columns) ** 0.5 * step)


class Muon(AdamW):
    name = "muon"  # factors keep half of AdamW's bytes, other parameters all
    step_cost = 4.7  # 4.9 million numbers in 210 pairs, of rank 16, AdamW's beside it
    rate_factor = 2.0  # best of 1, 2 and 4 on 40 rows of E2E was 4: in short runs AdamW's steps are longer than later

    def build(self, groups: list[dict[str, Any]], factors: Sequence[Pair]) -> torch.optim.Optimizer:
        return _Muon(groups, factors)


OPTIMIZER = Muon()
