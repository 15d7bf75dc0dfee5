"""ggml's blocks (https://github.com/ggml-org/ggml, ggml-common.h), by ggml's numbers of the formats.

A block of the older formats holds 32 numbers: a step d, perhaps a least number m, and codes. One of the K-quants holds
256, in sub-blocks with scales of few bits; these have steps of their own. N numbers, S sub-blocks, B bytes: tensors
are (…, blocks, B) and (…, blocks, S, numbers of a sub-block).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_Reader = Callable[[Tensor], Tensor]


def numbers_of(rows: Tensor, kind: int) -> Tensor:
    """The numbers (…, N), in fp32, of `rows` (…, bytes) in a format of ggml. Raises `KeyError` for one that is not
    read."""
    size, read = _FORMATS[kind]
    return read(rows.unflatten(-1, (-1, size))).flatten(-3 if kind in _SUB_BLOCKS else -2)


def q8_0_of(rows: Tensor) -> Tensor:
    """The bytes (…, 34 · blocks) of `rows` (…, N) in fp32: ggml's quantize_row_q8_0_ref, which rounds halves away from
    zero."""
    blocks = rows.unflatten(-1, (-1, 32))
    step = blocks.abs().amax(-1, keepdim=True) / 127
    scaled = blocks * torch.where(step == 0, 0.0, 1 / step)
    whole = scaled.abs().floor()
    codes = scaled.sign() * (whole + (2 * (scaled.abs() - whole)).floor())
    return torch.cat([step.half().view(torch.uint8), codes.to(torch.int8).view(torch.uint8)], -1).flatten(-2)


def _halves(blocks: Tensor, *at: int) -> tuple[Tensor, ...]:
    """The numbers of 16 bits that begin at these bytes, (…, blocks, 1)."""
    return tuple(blocks[..., i : i + 2].contiguous().view(torch.float16).float() for i in at)


def _shifted(x: Tensor, shifts: Sequence[int], mask: int) -> Tensor:
    """The bits under `mask` after each shift, in a dimension before the last: (…, shifts, B)."""
    return torch.stack([x >> by & mask for by in shifts], -2)


def _nibbles(x: Tensor) -> Tensor:
    """The lower halves of the bytes and then the upper ones, (…, 2·B)."""
    return _shifted(x, (0, 4), 15).flatten(-2)


def _in_sixteens(codes: Tensor) -> Tensor:
    """256 codes as sixteen sub-blocks, (…, 16, 16)."""
    found: Tensor = codes.unflatten(-1, (16, 16))
    return found


def _fifth_bits(x: Tensor) -> Tensor:
    """Of 4 bytes, whose bits are those of 32 codes: (…, 32)."""
    bits = torch.stack([x >> by & 1 for by in range(8)], -1)
    return bits.flatten(-2) << 4


def _q4_0(b: Tensor) -> Tensor:
    (d,) = _halves(b, 0)
    return d * (_nibbles(b[..., 2:]).float() - 8)


def _q4_1(b: Tensor) -> Tensor:
    d, m = _halves(b, 0, 2)
    return d * _nibbles(b[..., 4:]) + m


def _q5_0(b: Tensor) -> Tensor:
    (d,) = _halves(b, 0)
    return d * ((_nibbles(b[..., 6:]) | _fifth_bits(b[..., 2:6])).float() - 16)


def _q5_1(b: Tensor) -> Tensor:
    d, m = _halves(b, 0, 2)
    return d * (_nibbles(b[..., 8:]) | _fifth_bits(b[..., 4:8])) + m


def _q8_0(b: Tensor) -> Tensor:
    (d,) = _halves(b, 0)
    return d * b[..., 2:].view(torch.int8)


def _q2_k(b: Tensor) -> Tensor:
    scales = b[..., :16]
    d, least = _halves(b, 80, 82)
    steps, froms = (d * (scales & 15))[..., None], (least * (scales >> 4))[..., None]
    return steps * _pairs(b[..., 16:80]) - froms


def _pairs(x: Tensor) -> Tensor:
    """256 codes of two bits in 64 bytes: of each 32 bytes first all lowest bits, then the next. (…, 16, 16)."""
    codes = _shifted(x.unflatten(-1, (2, 32)), (0, 2, 4, 6), 3).flatten(-3)
    return _in_sixteens(codes)


def _q3_k(b: Tensor) -> Tensor:
    """The third bits are in the first 32 bytes, inverted; scales of six bits are in two parts."""
    third = _in_sixteens(_shifted(b[..., :32], range(8), 1).flatten(-2)) ^ 1
    low = _nibbles(b[..., 96:104])
    high = _shifted(b[..., 104:108], (0, 2, 4, 6), 3).flatten(-2)
    (d,) = _halves(b, 108)
    steps = d * ((low | high << 4).float() - 32)
    return steps[..., None] * (_pairs(b[..., 32:96]).float() - 4 * third)


def _ranges(b: Tensor) -> tuple[Tensor, Tensor]:
    """Step and least number of each of eight sub-blocks, (…, 8, 1): six bits each, in 12 bytes after d and its like."""
    d, least = _halves(b, 0, 2)
    one, two, rest = b[..., 4:16].unflatten(-1, (3, 4)).unbind(-2)
    scales = torch.cat([one & 63, rest & 15 | one >> 2 & 48], -1)
    froms = torch.cat([two & 63, rest >> 4 | two >> 2 & 48], -1)
    return (d * scales)[..., None], (least * froms)[..., None]


def _by_32(x: Tensor) -> Tensor:
    """256 codes of four bits in 128 bytes: of each 32 bytes first the lower halves. (…, 8, 32)."""
    return _shifted(x.unflatten(-1, (4, 32)), (0, 4), 15).flatten(-3, -2)


def _q4_k(b: Tensor) -> Tensor:
    steps, froms = _ranges(b)
    return steps * _by_32(b[..., 16:]) - froms


def _q5_k(b: Tensor) -> Tensor:
    steps, froms = _ranges(b)
    return steps * (_by_32(b[..., 48:]) | _shifted(b[..., 16:48], range(8), 1) << 4) - froms


def _q6_k(b: Tensor) -> Tensor:
    low = _shifted(b[..., :128].unflatten(-1, (2, 64)), (0, 4), 15)
    high = _shifted(b[..., 128:192].unflatten(-1, (2, 32)), (0, 2, 4, 6), 3)
    codes = (low.flatten(-3) | high.flatten(-3) << 4).float() - 32
    (d,) = _halves(b, 208)
    return (d * b[..., 192:208].view(torch.int8))[..., None] * _in_sixteens(codes)


# Bytes of a block, and how it is read.
_FORMATS: dict[int, tuple[int, _Reader]] = {
    2: (18, _q4_0),
    3: (20, _q4_1),
    6: (22, _q5_0),
    7: (24, _q5_1),
    8: (34, _q8_0),
    10: (84, _q2_k),
    11: (110, _q3_k),
    12: (144, _q4_k),
    13: (176, _q5_k),
    14: (210, _q6_k),
}
_SUB_BLOCKS = range(10, 15)  # the K-quants
