"""RMSNorm of a sum, and its gradient: formulas in by_triton.py. A program is a row of n numbers."""

import triton
import triton.language as tl


@triton.jit
def rms_forward(
    x, x_stride, added, added_stride, weight, h, y, rstd, n, eps, SUM: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """h (where SUM) and y are (rows, n), rstd (rows)."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < n
    v = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    if SUM:
        v += tl.load(added + row * added_stride + at, mask=inside, other=0.0).to(tl.float32)
        rounded = v.to(h.dtype.element_ty)
        tl.store(h + row * n + at, rounded, mask=inside)
        v = rounded.to(tl.float32)
    s = 1.0 / tl.sqrt(tl.sum(v * v, 0) / n + eps)
    tl.store(rstd + row, s)
    w = tl.load(weight + at, mask=inside, other=0.0)
    tl.store(y + row * n + at, (v * s * w).to(y.dtype.element_ty), mask=inside)


@triton.jit
def rms_backward(
    dy, dy_stride, dh, dh_stride, h, h_stride, weight, rstd, dx, dx_stride, n, USED: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """dh is added where the sum is USED again."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < n
    g = tl.load(dy + row * dy_stride + at, mask=inside, other=0.0).to(tl.float32)
    g *= tl.load(weight + at, mask=inside, other=0.0)
    v = tl.load(h + row * h_stride + at, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(rstd + row)
    d = g * s - v * (tl.sum(g * v, 0) * s * s * s / n)
    if USED:
        d += tl.load(dh + row * dh_stride + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + row * dx_stride + at, d.to(dx.dtype.element_ty), mask=inside)
