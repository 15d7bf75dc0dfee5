"""Norms and gates that kernels compute, forward and backward, whatever launches them: what is kept for the backward
pass, where gradients lie, and what is done where some are not wanted. T tokens, C channels, I the MLP's inner width."""

from typing import Any

import torch
from torch import Tensor

from afina.engine.ops._autograd import apply, empty_with_stride
from afina.engine.ops.activations import GATES
from afina.engine.ops.by_torch import Ops


class FusedOps(Ops):
    """The operations whose kernels a subclass launches. Each launch writes what its last arguments say, and takes
    tensors that may be strided by row."""

    def rms_norm(self, x_TC: Tensor, weight_C: Tensor, eps: float) -> Tensor:
        y: Tensor = apply(_RmsNorm, self, x_TC, None, weight_C, eps)
        return y

    def add_rms_norm(self, x_TC: Tensor, added_TC: Tensor, weight_C: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        both: tuple[Tensor, Tensor] = apply(_RmsNorm, self, x_TC, added_TC, weight_C, eps)
        return both

    def gated(self, gate_up_TI: Tensor, kind: str) -> Tensor:
        out: Tensor = apply(_Gated, self, gate_up_TI, GATES[kind][0])
        return out

    def norm_forward(
        self, x_TC: Tensor, added_TC: Tensor | None, weight_C: Tensor, eps: float, h_TC: Tensor, y_TC: Tensor,
        rstd_T: Tensor,
    ) -> None:  # fmt: skip
        """Writes y and rstd, (mean h² + eps)^−½, and h = x + added where something is added."""
        raise NotImplementedError

    def norm_backward(
        self, dy_TC: Tensor, dh_TC: Tensor | None, h_TC: Tensor, weight_C: Tensor, rstd_T: Tensor, dx_TC: Tensor
    ) -> None:
        """Writes dx, to which dh is added where h is used again."""
        raise NotImplementedError

    def gate_forward(self, gate_up_TI: Tensor, kind: int, out_TI: Tensor) -> None:
        """Writes out (T, I), of gate and up side by side."""
        raise NotImplementedError

    def gate_backward(self, gate_up_TI: Tensor, dout_TI: Tensor, kind: int, d_TI: Tensor) -> None:
        """Writes d, which lies as gate_up does."""
        raise NotImplementedError


class _RmsNorm(torch.autograd.Function):
    """With s = (mean h² + eps)^−½:  dh = s·(w ∘ dy) − h·s³·mean(w ∘ dy ∘ h),  dw = Σ_T dy ∘ h·s."""

    @staticmethod
    def forward(ctx: Any, ops: FusedOps, x: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> Any:
        rows, n = x.shape
        weight = weight.float()
        y, rstd = x.new_empty(rows, n), x.new_empty(rows, dtype=torch.float32)
        h = x if added is None else torch.empty_like(y)
        ops.norm_forward(x, added, weight, eps, h, y, rstd)
        ctx.save_for_backward(h, weight, rstd)
        ctx.ops, ctx.added = ops, added is not None
        ctx.stride = (x if added is None else added).stride(0)
        ctx.set_materialize_grads(False)
        return y if added is None else (h, y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        h, weight, rstd = ctx.saved_tensors
        dh, dy = grads if ctx.added else (None, grads[0])
        if dy is None:
            return None, dh, dh if ctx.added else None, None, None
        dx = empty_with_stride(h, ctx.stride)
        ctx.ops.norm_backward(dy, dh, h, weight, rstd, dx)
        dw = (dy.float() * h.float() * rstd[:, None]).sum(0) if ctx.needs_input_grad[3] else None
        return None, dx, dx if ctx.added else None, dw, None


class _Gated(torch.autograd.Function):
    """out = g·σ(a(g))·u:  du = dout·g·σ,  dg = dout·u·(σ + g·σ(1 − σ)·a′(g)), with a(g) = g for SiLU."""

    @staticmethod
    def forward(ctx: Any, ops: FusedOps, gate_up: Tensor, kind: int) -> Tensor:
        out = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
        ops.gate_forward(gate_up, kind, out)
        ctx.ops, ctx.kind = ops, kind
        ctx.save_for_backward(gate_up)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:
        (gate_up,) = ctx.saved_tensors
        d = empty_with_stride(gate_up, gate_up.stride(0))
        ctx.ops.gate_backward(gate_up, dout, ctx.kind, d)
        return None, d, None
