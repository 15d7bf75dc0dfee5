"""Formats of numbers in blocks, and how they are read: those of GGUF files, and NF4. R rows of K numbers each."""

from functools import lru_cache

import torch
from torch import Tensor

from afina.engine.formats import numbers_of

Q8_0, NF4 = 8, 1000
# ggml's numbers (https://github.com/ggml-org/ggml) of the formats that cpp/blocks.cpp can read: name, numbers and bytes
# of a block.
GGML_FORMATS = {
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
}
NF4_BLOCK = 64


def row_bytes(kind: int, columns: int) -> int | None:
    """Bytes of a row of so many numbers; None where they do not fill whole blocks."""
    if kind == NF4:  # the smallest scale and the step, a scale a block, two numbers a byte
        return None if columns % NF4_BLOCK else 8 + columns // NF4_BLOCK + columns // 2
    _, numbers, size = GGML_FORMATS[kind]
    return None if columns % numbers else columns // numbers * size


def nf4_levels() -> Tensor:
    """The 16 levels: quantiles of a normal distribution (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314,
    section 3)."""
    ends = (0.9677083, 9), (0.9677083, 8)
    above, below = (torch.special.ndtri(torch.linspace(at, 0.5, n, dtype=torch.float64))[:-1] for at, n in ends)
    levels = torch.cat([above, -below, torch.zeros(1, dtype=torch.float64)])
    # The denser side is the positive one: nine levels with its end, eight on the other.
    return (levels / levels.abs().max()).sort().values.float()


@lru_cache
def nf4_levels_on(device: torch.device) -> Tensor:
    """`nf4_levels` on a device, sent there once."""
    with torch.inference_mode(False):  # training may use them later
        return nf4_levels().to(device)


def unpack_by_torch(data: Tensor, kind: int, columns: int) -> Tensor:
    """The numbers (R, K) of the blocks `data` (R, bytes) in fp32."""
    return _nf4_numbers(data, columns) if kind == NF4 else numbers_of(data, kind)


def _nf4_numbers(data: Tensor, columns: int) -> Tensor:
    blocks = columns // NF4_BLOCK
    least, step = data[:, :8].contiguous().view(torch.float32).split(1, 1)
    scales = least + step * data[:, 8 : 8 + blocks]
    q = data[:, 8 + blocks :].unflatten(1, (blocks, -1))
    indices = torch.cat([q & 15, q >> 4], 2).long()
    numbers: Tensor = nf4_levels_on(data.device)[indices] * scales[..., None]
    return numbers.flatten(1)
