"""Numbers as ggml's types hold them: whole, in the older blocks of 32, and in K-quants, blocks of 256.

The older blocks are the `gguf` package's. K-quants, which it only reads, are found by the search of ggml's reference
without an importance matrix (https://github.com/ggml-org/ggml, quantize_row_q4_K_ref and its like): in
../cpp/quantise.cpp, or in numpy where nothing was compiled, with the same bytes.

A block is 256 numbers, x ≈ step · code − from: in Q4_K and Q5_K of eight sub-blocks of 32, in Q6_K of sixteen of 16,
without `from`. N numbers of a sub-block, S sub-blocks: arrays are (N, S), so that sums over N are formed in ggml's
order.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afina.engine import kernels
from afina.engine.blocks import GGML_FORMATS

_WHOLE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NUMBERS = {name: number for number, (name, _, _) in GGML_FORMATS.items()}
_BITS = {"Q4_K": 4, "Q5_K": 5, "Q6_K": 6}
_TRIES = {"Q4_K": (-1.0, 20), "Q5_K": (-0.5, 15)}  # where the search of ranges begins, and how many it tries
_NOTHING = 1e-15  # a Q6_K sub-block of nothing larger holds zeros
_QUIET: Any = {"over": "ignore", "under": "ignore", "divide": "ignore", "invalid": "ignore"}

TYPES = (*_WHOLE, "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", *_BITS)


def numbers_in_block(type: str) -> int:
    """The numbers of which rows must hold a multiple."""
    return 1 if type in _WHOLE else GGML_FORMATS[_NUMBERS[type]][1]


def bytes_of(count: int, type: str) -> int:
    """The bytes of so many numbers of whole blocks."""
    if type in _WHOLE:
        return count * _WHOLE[type].itemsize
    _, numbers, size = GGML_FORMATS[_NUMBERS[type]]
    return count // numbers * size


@torch.no_grad()
def quantised(rows_RK: Tensor, type: str) -> np.ndarray[Any, Any]:
    """The bytes (R, row_bytes) of finite `rows_RK` in `type`, one of `TYPES`. Raises `ValueError` where rows do not
    fill whole blocks."""
    rows_RK = rows_RK.detach().cpu()
    rows, columns = rows_RK.shape
    if columns % numbers_in_block(type):
        raise ValueError(f"rows of {columns} numbers do not fill blocks of {type}")
    if type in _WHOLE:
        return rows_RK.to(_WHOLE[type]).contiguous().view(torch.uint8).numpy()
    if type not in _BITS:
        import gguf

        return np.asarray(gguf.quantize(rows_RK.float().numpy(), gguf.GGMLQuantizationType[type]))
    if not kernels.can_run(rows_RK):
        rows_RK = rows_RK.float()
    fused = kernels.loaded()
    if fused is None:
        return _by_numpy(rows_RK.float().numpy().reshape(-1, 256), type).reshape(rows, -1)
    rows_RK = rows_RK.contiguous()
    out = torch.empty(rows, bytes_of(columns, type), dtype=torch.uint8)
    fused.call("quantise", rows_RK, _NUMBERS[type], out, rows_RK.numel() // 256, torch.get_num_threads())
    return out.numpy()


# ------------------------------------------------------------------------------------------------ K-quants in numpy

_Array = np.ndarray[Any, Any]


def _by_numpy(blocks: _Array, type: str) -> _Array:
    with np.errstate(**_QUIET):
        return _signed(blocks) if type == "Q6_K" else _ranges(blocks, type)


def _sum(terms: Sequence[_Array] | _Array) -> _Array:
    """One after another, as ggml adds: numpy would add in pairs."""
    return reduce(np.add, terms)


def _codes(x: _Array, inverse: _Array, origin: _Array | float, least: float, most: float) -> _Array:
    return np.clip(np.rint(inverse * (x - origin)), np.float32(least), np.float32(most))


def _ranges(blocks: _Array, type: str) -> _Array:
    """Q4_K and Q5_K of blocks (B, 256)."""
    count, bits = len(blocks), _BITS[type]
    top = (1 << bits) - 1
    x = np.ascontiguousarray(blocks.reshape(-1, 32).T)
    scale, least, rough = _fit_ranges(x, top, *_TRIES[type])
    steps, froms = scale.reshape(count, 8), -least.reshape(count, 8)
    header, d = np.zeros((count, 16), np.uint8), []
    codes = []
    for at, values in ((0, steps), (2, froms)):
        largest = np.maximum(values.max(1, keepdims=True), 0)
        per = np.where(largest > 0, np.float32(63) / largest, np.float32(0))
        codes.append(np.minimum(np.rint(per * values).astype(np.int64) & 255, 63))
        half = (largest / np.float32(63)).astype(np.float16)
        header[:, at : at + 2] = half.view(np.uint8)
        d.append(half.astype(np.float32) * codes[-1].astype(np.float32))
    low, high = codes
    header[:, 4:8], header[:, 8:12] = low[:, :4] | low[:, 4:] >> 4 << 6, high[:, :4] | high[:, 4:] >> 4 << 6
    header[:, 12:16] = low[:, 4:] & 15 | (high[:, 4:] & 15) << 4
    step, origin = (each.reshape(-1) for each in d)
    fine = np.clip(np.rint((x + origin) / step), 0, top)
    q = np.where(step == 0, rough, fine).T.astype(np.uint8).reshape(count, 8, 32)
    pairs = (q[:, ::2] & 15 | (q[:, 1::2] & 15) << 4).reshape(count, 128)
    if bits == 4:
        return np.concatenate([header, pairs], 1)
    fifth = reduce(np.bitwise_or, ((q[:, i] >> 4) << i for i in range(8)))
    return np.concatenate([header, fifth, pairs], 1)


def _fit_ranges(x: _Array, top: int, start: float, tries: int) -> tuple[_Array, _Array, _Array]:
    """x ≈ scale · code + least of sub-blocks (32, S), least ≤ 0: the best of several ranges by weighted squares. Scale,
    least, and the codes."""
    f = np.float32
    low, high = np.minimum(x.min(0), 0), x.max(0)
    flat = low == high
    w = np.sqrt(_sum(x * x) / f(32)) + abs(x)
    weights, weighted = _sum(w), _sum(w * x)
    inverse = f(top) / (high - low)
    scale, least = 1 / inverse, low
    codes = _codes(x, inverse, least, 0, top)
    best = _sum(w * np.square(scale * codes + least - x))
    for t in range(tries + 1):
        inverse = (f(start) + f(0.1) * f(t) + f(top)) / (high - least)
        tried = _codes(x, inverse, least, 0, top)
        wc = w * tried
        total, squares, product = _sum(wc), _sum(wc * tried), _sum(wc * x)
        determinant = weights * squares - total * total
        s = (weights * product - weighted * total) / determinant
        m = (squares * weighted - total * product) / determinant
        s, m = np.where(m > 0, product / squares, s), np.where(m > 0, f(0), m)
        error = _sum(w * np.square(s * tried + m - x))
        better = (determinant > 0) & (error < best)
        codes = np.where(better, tried, codes)
        best, scale, least = (np.where(better, n, o) for n, o in ((error, best), (s, scale), (m, least)))
    return np.where(flat, f(0), scale), np.where(flat, low, least), np.where(flat, f(0), codes)


def _signed(blocks: _Array) -> _Array:
    """Q6_K of blocks (B, 256)."""
    count = len(blocks)
    x = np.ascontiguousarray(blocks.reshape(-1, 16).T)
    scale, rough = _fit_signed(x)
    scales = scale.reshape(count, 16)
    largest = np.take_along_axis(scales, abs(scales).argmax(1, keepdims=True), 1)
    empty = abs(largest) < _NOTHING
    per = np.float32(-128) / largest
    codes = np.where(empty, 0, np.minimum(np.rint(per * scales), 127)).astype(np.int8)
    half = np.where(empty, np.float32(0), 1 / per).astype(np.float16)
    step = (half.astype(np.float32) * codes.astype(np.float32)).reshape(-1)
    fine = np.clip(np.rint(x / step), -32, 31) + 32
    q = np.where(step == 0, rough, fine)
    q = np.where(np.repeat(empty[:, 0], 16), 0, q).T.astype(np.uint8).reshape(count, 2, 4, 32)
    low = np.stack([q[:, :, 0] & 15 | q[:, :, 2] << 4, q[:, :, 1] & 15 | q[:, :, 3] << 4], 2).reshape(count, 128)
    high = reduce(np.bitwise_or, ((q[:, :, i] >> 4) << 2 * i for i in range(4))).reshape(count, 64)
    return np.concatenate([low, high, codes.view(np.uint8), half.view(np.uint8)], 1)


def _fit_signed(x: _Array) -> tuple[_Array, _Array]:
    """x ≈ scale · (code − 32) of sub-blocks (16, S): the best of nineteen scales by squares that are weighted with
    squares. Scale, and the codes."""
    f = np.float32
    peak = np.take_along_axis(x, abs(x).argmax(0)[None], 0)[0]
    w, codes = x * x, np.zeros_like(x)
    scale, best = np.zeros_like(peak), np.zeros_like(peak)
    for by in (0, *range(-9, 0), *range(1, 10)):
        inverse = -(f(32) + f(0.1) * f(by)) / peak
        tried = _codes(x, inverse, 0.0, -32, 31)
        product, squares = _sum(w * x * tried), _sum(w * tried * tried)
        better = (squares > 0) & (product * product > best * squares) if by else np.ones(x.shape[1], bool)
        found = np.where(squares == 0, f(0), product / squares)
        codes = np.where(better, tried + 32, codes)
        scale, best = np.where(better, found, scale), np.where(better, found * product, best)
    nothing = abs(peak) < _NOTHING
    return np.where(nothing, f(0), scale), np.where(nothing, f(0), codes)
