"""LoRA-RITE: steps that change the update BA alike, however it is divided between A and B, with matrices as second
moments (Yen et al. 2024, https://arxiv.org/abs/2410.20625, algorithm 1).

For either factor F (B, or Aᵀ), with the other factor G = UR divided into orthonormal columns U and its size R (the
polar decomposition):

    ∇ = ∇F R⁻¹                                      the gradient as if G had no size
    P = UᵀU₋                                        from the basis of the step before to this one's
    ρ ← β₂(ρ + max |λ(V) − λ(PVPᵀ)|)                what V loses by the change of basis, at most
    V ← β₂ PVPᵀ + (1 − β₂) ∇ᵀ∇ / rows
    M ← β₁ MPᵀ + (1 − β₁) ∇(V + ρI)^(−1/2)
    F ← F − η M R⁻¹

β₁ and β₂ are those of AdamW, corrected for their start (Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235,
section 7.1). The paper's algorithm sums V and ρ over all steps; here they fade, as V does in its authors' code. N
factors of a shape, X inputs or outputs, R rank.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from afina.training.optimizers._factors import FactorOptimizer, Pair
from afina.training.optimizers.adamw import AdamW

_BETAS = 0.9, 0.999
_EPSILON = 1e-8


class _LoraRite(FactorOptimizer):
    def change(self, a_factors: list[Tensor], b_factors: list[Tensor]) -> None:
        sides = (a_factors, True), (b_factors, False)
        columns = [_columns(torch.stack(factors), wide) for factors, wide in sides]
        slopes = [_columns(self.gradients(factors), wide) for factors, wide in sides]
        polar = [_polar(f_NXR) for f_NXR in columns]
        before = [
            self.kept(factors, "basis", *f_NXR.shape[1:]) for (factors, _), f_NXR in zip(sides, columns, strict=True)
        ]
        for i, (factors, wide) in enumerate(sides):
            (u_NXR, _), (other_NXR, inverse_NRR) = polar[i], polar[1 - i]
            change_NRR = other_NXR.mT @ before[1 - i]
            step_NXR = self._moments(factors, slopes[i] @ inverse_NRR, change_NRR) @ inverse_NRR
            self.keep(factors, basis=u_NXR)
            self.move(factors, _columns(step_NXR, wide))

    def _moments(self, factors: list[Tensor], slope_NXR: Tensor, change_NRR: Tensor) -> Tensor:
        """Takes the gradient into the moments; the first, of preconditioned gradients."""
        _, rows, rank = slope_NXR.shape
        count_N = self.kept(factors, "step") + 1
        beta1_N11, beta2_N11 = ((b * (1 - b ** (count_N - 1)) / (1 - b**count_N))[:, None, None] for b in _BETAS)
        variance_NRR = self.kept(factors, "variance", rank, rank)
        moved_NRR = change_NRR @ variance_NRR @ change_NRR.mT
        spectra_2NR = torch.linalg.eigvalsh(torch.stack([variance_NRR, moved_NRR]))
        lost_N = (spectra_2NR[0] - spectra_2NR[1]).abs().amax(-1)
        lost_N = beta2_N11[:, 0, 0] * (self.kept(factors, "lost") + lost_N)
        variance_NRR = beta2_N11 * moved_NRR + (1 - beta2_N11) * slope_NXR.mT @ slope_NXR / rows
        root_NRR = _spectral(
            variance_NRR, lambda w_NR, most_N1: 1 / ((w_NR.clamp(min=most_N1) + lost_N[:, None]).sqrt() + _EPSILON)
        )
        mean_NXR = beta1_N11 * self.kept(factors, "mean", rows, rank) @ change_NRR.mT
        mean_NXR = mean_NXR + (1 - beta1_N11) * slope_NXR @ root_NRR
        self.keep(factors, step=count_N, variance=variance_NRR, lost=lost_N, mean=mean_NXR)
        return mean_NXR


def _columns(x: Tensor, wide: bool) -> Tensor:
    return x.mT if wide else x


def _polar(x_NXR: Tensor) -> Pair:
    """U with orthonormal columns, (N, X, R), and the inverse of R, (N, R, R), of X = UR; zero where X has no size."""
    inverse_NRR = _spectral(x_NXR.mT @ x_NXR, lambda w_NR, least_N1: torch.where(w_NR > least_N1, w_NR.rsqrt(), 0.0))
    return x_NXR @ inverse_NRR, inverse_NRR


def _spectral(x_NRR: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Symmetric matrices with `function` of their eigenvalues, (N, R), and of what of these is rounding, (N, 1)."""
    values_NR, vectors_NRR = torch.linalg.eigh(x_NRR)
    rounding_N1 = 4 * torch.finfo(x_NRR.dtype).eps * values_NR[:, -1:].clamp(min=0)
    made_NRR: Tensor = (vectors_NRR * function(values_NR, rounding_N1)[:, None]) @ vectors_NRR.mT
    return made_NRR


class LoraRite(AdamW):
    name = "lora_rite"  # a mean and a basis of the factor's size, and a matrix of the rank's
    step_cost = 13.5  # 4.9 million numbers in 210 pairs, of rank 16, AdamW's beside it
    rate_factor = 0.5  # best of 0.3, 0.6, 1 and 3 on 40 rows of E2E was 0.6: rows of A have norm 0.6 at first

    def build(self, groups: list[dict[str, Any]], factors: Sequence[Pair]) -> torch.optim.Optimizer:
        return _LoraRite(groups, factors)


OPTIMIZER = LoraRite()
