"""AdamW on gradients of A and B that together come nearest to the gradient of the weight itself (LoRA-Pro, Wang et al.
2024, https://arxiv.org/abs/2407.18242, section 2: its closed form, its choice of X, and its efficient mode).

To first order a step along ∇A and ∇B changes BA along B∇A + ∇B A. Of all pairs that bring this nearest to the gradient
of the whole weight,

    ∇A' = (BᵀB)⁻¹ ∇A + XA,    ∇B' = (I − B(BᵀB)⁻¹Bᵀ) ∇B (AAᵀ)⁻¹ − BX    for any X (R, R),

the one nearest to ∇A and ∇B themselves is taken: BᵀB X + X AAᵀ = −(BᵀB)⁻¹ ∇A Aᵀ. A scaling s of the update divides all
by s², which AdamW does not see. δI is added to BᵀB and AAᵀ, for B is zero at first. The moments are those of ∇A' and
∇B': no more than AdamW's, where those of the paper's full mode have the whole weight's size. N pairs, R rank, I inputs,
O outputs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from afina.training.optimizers._factors import Pair, PreconditionedAdamW
from afina.training.optimizers.adamw import AdamW

_DELTA = 1e-8


def adjusted(a_NRI: Tensor, b_NOR: Tensor, da_NRI: Tensor, db_NOR: Tensor) -> Pair:
    """∇A' and ∇B'."""
    (of_b_NR, of_a_NR), (u_NRR, v_NRR) = _spectra(b_NOR.mT @ b_NOR, a_NRI @ a_NRI.mT)
    inverse_b_NRR, inverse_a_NRR = (u_NRR / of_b_NR[:, None]) @ u_NRR.mT, (v_NRR / of_a_NR[:, None]) @ v_NRR.mT
    least_a_NRI, least_b_NOR = inverse_b_NRR @ da_NRI, db_NOR @ inverse_a_NRR
    least_b_NOR = least_b_NOR - b_NOR @ (inverse_b_NRR @ (b_NOR.mT @ least_b_NOR))
    # Sylvester's equation, in the bases in which BᵀB and AAᵀ are diagonal.
    right_NRR = -u_NRR.mT @ (least_a_NRI @ a_NRI.mT) @ v_NRR
    x_NRR = u_NRR @ (right_NRR / (of_b_NR[:, :, None] + of_a_NR[:, None])) @ v_NRR.mT
    return least_a_NRI + x_NRR @ a_NRI, least_b_NOR - b_NOR @ x_NRR


def _spectra(*grams_NRR: Tensor) -> Pair:
    """The eigenvalues of XXᵀ + δI, and its eigenvectors in columns, of all XXᵀ at one time: a card is waited for."""
    values_2NR, vectors_2NRR = torch.linalg.eigh(torch.stack(grams_NRR))
    return values_2NR.clamp(min=0) + _DELTA, vectors_2NRR


class LoraPro(AdamW):
    name = "lora_pro"
    step_cost = 5.6  # 4.9 million numbers in 210 pairs, of rank 16, AdamW's beside it

    def build(self, groups: list[dict[str, Any]], factors: Sequence[Pair]) -> torch.optim.Optimizer:
        return PreconditionedAdamW(groups, factors, adjusted)


OPTIMIZER = LoraPro()
