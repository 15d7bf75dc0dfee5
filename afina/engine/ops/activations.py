"""The MLP's activations, plain and gated. T tokens, I the MLP's inner width; inputs may be strided by row."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from afina.engine import kernels
from afina.engine.kernels import Kernels
from afina.engine.ops._autograd import apply, empty_with_stride


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


# By transformers' names. A gate has a number too: the kernels' `kind`.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "relu": F.relu,
}
GATES: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {"silu": (0, F.silu), "gelu_pytorch_tanh": (1, _gelu_tanh)}


def gated(fused: Kernels | None, gate_up_TI: Tensor, kind: str) -> Tensor:
    """act(gate) · up, (T, I), of a joined (T, 2·I) product (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""
    if fused is None:
        gate, up = gate_up_TI.chunk(2, -1)
        return GATES[kind][1](gate) * up
    out: Tensor = apply(_Gated, fused, gate_up_TI, GATES[kind][0])
    return out


class _Gated(torch.autograd.Function):
    """out = g·σ(a(g))·u:  du = dout·g·σ,  dg = dout·u·(σ + g·σ(1 − σ)·a′(g)), with a(g) = g for SiLU."""

    @staticmethod
    def forward(ctx: Any, fused: Kernels, gate_up: Tensor, kind: int) -> Tensor:
        rows, n = gate_up.shape[0], gate_up.shape[1] // 2
        kernels.expect(gate_up.dtype, (gate_up, (rows, 2 * n)))
        out = gate_up.new_empty(rows, n)
        fused.call("gated_forward", gate_up, gate_up.stride(0), out, rows, n, kind, torch.get_num_threads())
        ctx.fused, ctx.kind = fused, kind
        ctx.save_for_backward(gate_up)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:
        (gate_up,) = ctx.saved_tensors
        d = empty_with_stride(gate_up)
        n = gate_up.shape[1] // 2
        dout = dout.contiguous()
        kernels.expect(d.dtype, (dout, (len(d), n)))
        ctx.fused.call(
            "gated_backward", gate_up, gate_up.stride(0), dout, d, len(d), n, ctx.kind, torch.get_num_threads()
        )
        return None, d, None
