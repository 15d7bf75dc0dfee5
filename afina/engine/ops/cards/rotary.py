"""Norms and rotation of queries and keys, and their gradients: formulas in by_triton.py.

A program is a token's queries (part 0), its keys (1), or, backward, its values (2), which are copied. It holds the
heads' three pieces: `a` and `b`, the two halves of what is rotated, side by side as pairs, and `rest`. A thread has
both numbers of a pair, so that the rotation may be in place.
"""

import triton
import triton.language as tl


@triton.jit
def _pieces(at, h, i, j, pairs, D):
    """Where a head's pieces lie: h (HEADS, 1) heads of D numbers, i (1, PAIRS) and j (1, REST) within."""
    return at + h * D + i, at + h * D + pairs + i, at + h * D + 2 * pairs + j


@triton.jit
def _weights(wq, wk, part, at, inside):
    """Of the norm of this part."""
    own = tl.load(wq + at, mask=inside & (part == 0), other=0.0)
    return own + tl.load(wk + at, mask=inside & (part == 1), other=0.0)


@triton.jit
def _per_group(by_head, ALL: tl.constexpr):
    """Sums by head as (HEADS, 1), or in ALL heads together."""
    return tl.sum(by_head, 0) if ALL else by_head[:, None]


@triton.jit
def rotary_forward(
    x, x_stride, out, out_stride, cosines, sines, rows, wq, wk, H, HKV, D, pairs, eps,
    NORM: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, RESTS: tl.constexpr,
):  # fmt: skip
    """x and out begin with H·D numbers of the queries and HKV·D of the keys; out may be x where there is no norm (0;
    1: of each head, 2: of all heads). RESTS says whether there is more to write than the pairs."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    heads = tl.where(part == 0, H, HKV)
    begin = part * H * D
    h, i, j = tl.arange(0, HEADS)[:, None], tl.arange(0, PAIRS)[None, :], tl.arange(0, REST)[None, :]
    inside, rest_inside = (h < heads) & (i < pairs), (h < heads) & (j < D - 2 * pairs)
    at_a, at_b, at_rest = _pieces(begin, h, i, j, pairs, D)
    own = x + row * x_stride
    a = tl.load(own + at_a, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(own + at_b, mask=inside, other=0.0).to(tl.float32)
    if RESTS:
        rest = tl.load(own + at_rest, mask=rest_inside, other=0.0).to(tl.float32)
    if NORM:
        squares = tl.sum(a * a + b * b, 1)
        if RESTS:
            squares += tl.sum(rest * rest, 1)
        group = heads * D if NORM == 2 else D
        s = 1.0 / tl.sqrt(_per_group(squares, NORM == 2) / group + eps)
        first = h * D if NORM == 2 else h * 0
        a *= s * _weights(wq, wk, part, first + i, inside)
        b *= s * _weights(wq, wk, part, first + pairs + i, inside)
        if RESTS:
            rest *= s * _weights(wq, wk, part, first + 2 * pairs + j, rest_inside)
    angle = tl.load(rows + row) * pairs + i
    c = tl.load(cosines + angle, mask=i < pairs, other=0.0)
    sine = tl.load(sines + angle, mask=i < pairs, other=0.0)
    to = out + row * out_stride
    tl.store(to + at_a, (a * c - b * sine).to(out.dtype.element_ty), mask=inside)
    tl.store(to + at_b, (b * c + a * sine).to(out.dtype.element_ty), mask=inside)
    if RESTS:
        tl.store(to + at_rest, rest.to(out.dtype.element_ty), mask=rest_inside)


@triton.jit
def rotary_backward(
    dq, dk, dv, dq_stride, dk_stride, dv_stride, x, x_stride, d, d_stride, cosines, sines, rows, wq, wk, H, HKV, D,
    pairs, eps, NORM: tl.constexpr, HEADS: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, RESTS: tl.constexpr,
):  # fmt: skip
    """d, as wide as x at least, becomes the gradient of x; x is read only for a norm."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    heads = tl.where(part == 0, H, HKV)
    begin = tl.where(part == 2, (H + HKV) * D, part * H * D)
    h, i, j = tl.arange(0, HEADS)[:, None], tl.arange(0, PAIRS)[None, :], tl.arange(0, REST)[None, :]
    inside, rest_inside = (h < heads) & (i < pairs), (h < heads) & (j < D - 2 * pairs)
    of_a, of_b, of_rest = _pieces(0, h, i, j, pairs, D)
    at_a, at_b, at_rest = _pieces(begin, h, i, j, pairs, D)
    q, k, v = dq + row * dq_stride, dk + row * dk_stride, dv + row * dv_stride
    ga = _given(q, k, v, part, of_a, inside)
    gb = _given(q, k, v, part, of_b, inside)
    if RESTS:
        rest = _given(q, k, v, part, of_rest, rest_inside)
    turned = part < 2
    angle = tl.load(rows + row) * pairs + i
    c = tl.load(cosines + angle, mask=(i < pairs) & turned, other=1.0)
    sine = tl.load(sines + angle, mask=(i < pairs) & turned, other=0.0)
    da, db = ga * c + gb * sine, gb * c - ga * sine
    if NORM:
        own = x + row * x_stride
        a = tl.load(own + at_a, mask=inside & turned, other=0.0).to(tl.float32)
        b = tl.load(own + at_b, mask=inside & turned, other=0.0).to(tl.float32)
        first = h * D if NORM == 2 else h * 0
        # Values have no norm: ones in the place of weights, and of the scale.
        wa = tl.where(turned, _weights(wq, wk, part, first + i, inside), 1.0)
        wb = tl.where(turned, _weights(wq, wk, part, first + pairs + i, inside), 1.0)
        da *= wa
        db *= wb
        squares, dots = tl.sum(a * a + b * b, 1), tl.sum(a * da + b * db, 1)
        if RESTS:
            r = tl.load(own + at_rest, mask=rest_inside & turned, other=0.0).to(tl.float32)
            rest *= tl.where(turned, _weights(wq, wk, part, first + 2 * pairs + j, rest_inside), 1.0)
            squares += tl.sum(r * r, 1)
            dots += tl.sum(r * rest, 1)
        group = heads * D if NORM == 2 else D
        s = 1.0 / tl.sqrt(_per_group(squares, NORM == 2) / group + eps)
        s = tl.where(turned, s, 1.0)
        along = _per_group(dots, NORM == 2) * s * s * s / group
        da, db = s * da - a * along, s * db - b * along
        if RESTS:
            rest = s * rest - r * along
    to = d + row * d_stride
    tl.store(to + at_a, da.to(d.dtype.element_ty), mask=inside)
    tl.store(to + at_b, db.to(d.dtype.element_ty), mask=inside)
    if RESTS:
        tl.store(to + at_rest, rest.to(d.dtype.element_ty), mask=rest_inside)


@triton.jit
def _given(q, k, v, part, at, inside):
    """The gradients of this part."""
    found = tl.load(q + at, mask=inside & (part == 0), other=0.0).to(tl.float32)
    found += tl.load(k + at, mask=inside & (part == 1), other=0.0).to(tl.float32)
    return found + tl.load(v + at, mask=inside & (part == 2), other=0.0).to(tl.float32)
