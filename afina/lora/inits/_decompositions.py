"""Singular components of weights and gradients, and factors made of them.

Shapes: N rows, M columns, R rank, I inputs, O outputs.
"""

import torch
from torch import Tensor


def low_rank_factors(target_OI: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank) such that s·BA is the matrix of that rank nearest to `target`."""
    u_OR, sizes_R, vt_RI = largest_components(target_OI, rank)
    roots_R = (sizes_R / scaling).sqrt()
    return roots_R[:, None] * vt_RI, u_OR * roots_R


def largest_components(x_NM: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` largest singular components of x, as U (N, count), S (count,) and Vᵀ (count, M).

    By iterated random projections (Halko et al. 2011, https://arxiv.org/abs/0909.4061, algorithm 4.4), which takes
    seconds for a model instead of minutes; small matrices are decomposed exactly.
    """
    wide = 2 * count + 8
    if wide >= min(x_NM.shape) / 2:
        u, sizes, vt = torch.linalg.svd(x_NM, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, sizes, v = torch.svd_lowrank(x_NM, wide, niter=8)
        vt = v.T
    return u[:, :count], sizes[:count], vt[:count]
