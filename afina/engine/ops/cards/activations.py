"""Gated activations, and their gradients: formulas in by_triton.py. A program is a block of a row."""

import triton
import triton.language as tl


@triton.jit
def _argument(g, GELU: tl.constexpr):
    """act(g) = g · σ(this): g of SiLU, 2·√(2/π)·(g + 0.044715·g³) of GELU's tanh form."""
    return 1.5957691216057308 * (g + 0.044715 * g * g * g) if GELU else g


@triton.jit
def gated_forward(gate_up, stride, out, n, GELU: tl.constexpr, BLOCK: tl.constexpr):
    """gate_up is (rows, 2·n), the gate first; out (rows, n)."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    g = tl.load(gate_up + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(gate_up + row * stride + n + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * n + at, (g * tl.sigmoid(_argument(g, GELU)) * u).to(out.dtype.element_ty), mask=inside)


@triton.jit
def gated_backward(gate_up, stride, dout, dout_stride, d, n, GELU: tl.constexpr, BLOCK: tl.constexpr):
    """d lies as gate_up does."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    g = tl.load(gate_up + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(gate_up + row * stride + n + at, mask=inside, other=0.0).to(tl.float32)
    o = tl.load(dout + row * dout_stride + at, mask=inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(_argument(g, GELU))
    slope = 1.5957691216057308 * (1.0 + 0.134145 * g * g) if GELU else 1.0
    dg = o * u * (s + g * s * (1.0 - s) * slope)
    tl.store(d + row * stride + at, dg.to(d.dtype.element_ty), mask=inside)
    tl.store(d + row * stride + n + at, (o * g * s).to(d.dtype.element_ty), mask=inside)
