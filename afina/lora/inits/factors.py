"""What A and B begin with, where it comes from a random generator or from the frozen weight alone.

Each function gives (A (rank, in), B (out, rank)) in fp32 for W (out, in) and the scaling s of the update s·BA.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Start = Callable[[Tensor, int, float, torch.Generator], tuple[Tensor, Tensor]]


def gaussian(w: Tensor, rank: int, scaling: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A ~ N(0, 1/rank²), B = 0 (as in diffusers' LoRA and PEFT's `gaussian`)."""
    return torch.randn(rank, w.shape[1], generator=generator) / rank, torch.zeros(w.shape[0], rank)


def orthogonal(w: Tensor, rank: int, scaling: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A and B from the odd and even rows of one orthogonal matrix, so that BA = 0 with neither at zero.

    Q (rank, rank) orthogonal, A = (X Q_odd)ᵀ / 10, B = (Y Q_even) / 10, X and Y ~ N(0, 1)
    (D. Tamma 2024, https://datta0.github.io/posts/rethink-lora-init/). The rank is even.
    """
    q = torch.linalg.qr(torch.randn(rank, rank, generator=generator)).Q
    a = (torch.randn(w.shape[1], rank // 2, generator=generator) @ q[0::2]).T / 10
    b = torch.randn(w.shape[0], rank // 2, generator=generator) @ q[1::2] / 10
    return a, b


def pissa(w: Tensor, rank: int, scaling: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """s·BA = the `rank` largest singular parts of W (Meng et al. 2024, https://arxiv.org/abs/2404.02948, equations 2 and 3)."""
    return residual(w, rank, scaling)


def olora(w: Tensor, rank: int, scaling: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """W = QR: B the first columns of Q, A the first rows of R (Büyükakyüz 2024, https://arxiv.org/abs/2406.01775, section 3)."""
    q, r = torch.linalg.qr(w)
    return r[:rank], q[:, :rank]


def residual(rest: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """s·BA = the nearest matrix of that rank to `rest` (out, in); with W − Q(W) the start of LoftQ (Li et al. 2023,
    https://arxiv.org/abs/2310.08659, algorithm 1 with one step, for the quantised base stays as it is)."""
    u, sizes, vt = largest(rest, rank)
    roots = (sizes / scaling).sqrt()
    return roots[:, None] * vt, u * roots


def largest(x: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` largest singular parts of x, as (U, S, Vᵀ).

    By iterated random projections (Halko et al. 2011, https://arxiv.org/abs/0909.4061, algorithm 4.4), seconds for a model instead of
    minutes; small matrices are decomposed exactly.
    """
    wide = 2 * count + 8
    if wide >= min(x.shape) / 2:
        u, sizes, vt = torch.linalg.svd(x, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, sizes, v = torch.svd_lowrank(x, wide, niter=8)
        vt = v.T
    return u[:, :count], sizes[:count], vt[:count]


STARTS: dict[str, Start] = {"gaussian": gaussian, "orthogonal": orthogonal, "pissa": pissa, "olora": olora}
