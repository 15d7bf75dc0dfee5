"""RMSNorm, alone and of a sum. T tokens, C channels; inputs may be strided by row."""

from typing import Any

import torch
from torch import Tensor

from afina.engine import kernels
from afina.engine.kernels import Kernels
from afina.engine.ops._autograd import apply


def rms_norm(fused: Kernels | None, x_TC: Tensor, weight_C: Tensor, eps: float) -> Tensor:
    """y = w · x / √(mean x² + eps), the mean in fp32 (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467)."""
    if fused is None:
        return rms_norm_by_torch(x_TC, weight_C, eps)
    y: Tensor = apply(_RmsNorm, fused, x_TC, None, weight_C, eps)
    return y


def add_rms_norm(
    fused: Kernels | None, x_TC: Tensor, added_TC: Tensor, weight_C: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """(h, y): h = x + added, and y the norm of h."""
    if fused is None:
        h_TC = x_TC + added_TC
        return h_TC, rms_norm_by_torch(h_TC, weight_C, eps)
    both: tuple[Tensor, Tensor] = apply(_RmsNorm, fused, x_TC, added_TC, weight_C, eps)
    return both


def rms_norm_by_torch(x_TC: Tensor, weight_C: Tensor, eps: float) -> Tensor:
    """`rms_norm` over the last dimension, in torch on any device."""
    x32 = x_TC.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps) * weight_C.float()).to(x_TC.dtype)


class _RmsNorm(torch.autograd.Function):
    """With s = (mean h² + eps)^−½:  dh = s·(w ∘ dy) − h·s³·mean(w ∘ dy ∘ h),  dw = Σ_T dy ∘ h·s."""

    @staticmethod
    def forward(ctx: Any, fused: Kernels, x: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> Any:
        rows, n = x.shape
        weight = weight.float()
        y, rstd = torch.empty(rows, n, dtype=x.dtype), torch.empty(rows)
        h = torch.empty_like(y) if added is not None else x
        kernels.expect(x.dtype, (x, (rows, n)), (x if added is None else added, (rows, n)))
        kernels.expect(torch.float32, (weight, (n,)))
        fused.call(
            "rms_forward", x, x.stride(0), *((None, 0) if added is None else (added, added.stride(0))), weight, h, y,
            rstd, rows, n, eps, torch.get_num_threads(),
        )  # fmt: skip
        ctx.fused = fused
        ctx.save_for_backward(h, weight, rstd)
        ctx.stride = (x if added is None else added).stride(0)
        ctx.added = added is not None
        ctx.set_materialize_grads(False)
        return y if added is None else (h, y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        h, weight, rstd = ctx.saved_tensors
        dh, dy = grads if ctx.added else (None, grads[0])
        if dy is None:
            return None, dh, dh if ctx.added else None, None, None
        rows, n = h.shape
        dy = dy.contiguous()
        dx = h.new_empty(rows, ctx.stride)[:, :n]
        kernels.expect(h.dtype, (dy, (rows, n)), (h if dh is None else dh, (rows, n)))
        ctx.fused.call(
            "rms_backward", dy, *((None, 0) if dh is None else (dh, dh.stride(0))), h, h.stride(0), weight, rstd, dx,
            dx.stride(0), rows, n, torch.get_num_threads(),
        )  # fmt: skip
        dw = (dy.float() * h.float() * rstd[:, None]).sum(0) if ctx.needs_input_grad[3] else None
        return None, dx, dx if ctx.added else None, dw, None
