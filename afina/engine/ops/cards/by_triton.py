"""The operations on cards that Triton compiles for (CUDA, ROCm), in the kernels beside this, forward and backward.

They keep for the backward pass what the processor's keep (by_cpp.py), and gradients lie as their tensors do, with the
same room beside them. T tokens, packed.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from afina.engine.ops._autograd import apply
from afina.engine.ops.attention import attend_rotated
from afina.engine.ops.cards import TYPES
from afina.engine.ops.cards.activations import gated_backward, gated_forward
from afina.engine.ops.cards.losses import cross_entropy
from afina.engine.ops.cards.norms import rms_backward, rms_forward
from afina.engine.ops.cards.rotary import rotary_backward, rotary_forward
from afina.engine.ops.cards.unpack import unpack_blocks, unpack_nf4
from afina.engine.ops.fused import FusedOps
from afina.engine.ops.rotary import AttentionSpec, Rotation
from afina.engine.ops.segments import Segments
from afina.engine.ops.unpack import GGML_FORMATS, NF4, NF4_BLOCK, nf4_levels_on

DTYPES = torch.float32, torch.bfloat16, torch.float16
_GATED_BLOCK, _WORDS_BLOCK, _UNPACKED = 1024, 8192, 1024  # numbers of a row that a program takes at one time


class TritonOps(FusedOps):
    """`devices`: the types of device that tensors may be on. Matrix products are torch's."""

    ranks = 16  # so that the rows of Ŵ's products begin at multiples of 16 bytes, which fast kernels need

    def __init__(self, devices: tuple[str, ...] = TYPES) -> None:
        self._devices = devices

    def takes(self, x: Tensor) -> bool:
        return x.device.type in self._devices and x.dtype in DTYPES

    def norm_forward(
        self, x_TC: Tensor, added_TC: Tensor | None, weight_C: Tensor, eps: float, h_TC: Tensor, y_TC: Tensor,
        rstd_T: Tensor,
    ) -> None:  # fmt: skip
        rows, n = x_TC.shape
        last, block = x_TC if added_TC is None else added_TC, triton.next_power_of_2(n)
        _launch(
            rms_forward, (rows,), x_TC, x_TC.stride(0), last, last.stride(0), weight_C, h_TC, y_TC, rstd_T, n, eps,
            SUM=added_TC is not None, BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip

    def norm_backward(
        self, dy_TC: Tensor, dh_TC: Tensor | None, h_TC: Tensor, weight_C: Tensor, rstd_T: Tensor, dx_TC: Tensor
    ) -> None:
        rows, n = h_TC.shape
        dy, dh, block = _in_rows(dy_TC), h_TC if dh_TC is None else _in_rows(dh_TC), triton.next_power_of_2(n)
        _launch(
            rms_backward, (rows,), dy, dy.stride(0), dh, dh.stride(0), h_TC, h_TC.stride(0), weight_C, rstd_T, dx_TC,
            dx_TC.stride(0), n, USED=dh_TC is not None, BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip

    def gate_forward(self, gate_up_TI: Tensor, kind: int, out_TI: Tensor) -> None:
        rows, n = out_TI.shape
        grid = rows, triton.cdiv(n, _GATED_BLOCK)
        _launch(
            gated_forward, grid, gate_up_TI, gate_up_TI.stride(0), out_TI, n, GELU=bool(kind), BLOCK=_GATED_BLOCK
        )  # fmt: skip

    def gate_backward(self, gate_up_TI: Tensor, dout_TI: Tensor, kind: int, d_TI: Tensor) -> None:
        rows, n = dout_TI.shape
        dout = _in_rows(dout_TI)
        _launch(
            gated_backward, (rows, triton.cdiv(n, _GATED_BLOCK)), gate_up_TI, gate_up_TI.stride(0), dout,
            dout.stride(0), d_TI, n, GELU=bool(kind), BLOCK=_GATED_BLOCK,
        )  # fmt: skip

    def rotate(self, qkv_TE: Tensor, spec: AttentionSpec, rotation: Rotation | None) -> Tensor:
        if rotation is None or rotation.trains_norms:
            return super().rotate(qkv_TE, spec, rotation)
        out = qkv_TE.new_empty(len(qkv_TE), spec.qk_size)
        _rotate(qkv_TE, out, spec, rotation)
        return out

    def attend(self, qkv_TE: Tensor, spec: AttentionSpec, rotation: Rotation | None, segments: Segments) -> Tensor:
        if rotation is None or rotation.trains_norms:
            return super().attend(qkv_TE, spec, rotation, segments)
        q_THD, k_THD, v_THD = apply(_Rotate, qkv_TE, spec, rotation)
        return attend_rotated(q_THD, k_THD, v_THD, spec, segments)

    def chunk_losses(self, logits_NV: Tensor, labels_N: Tensor, losses_N: Tensor, gradient: bool) -> Tensor:
        words = logits_NV.shape[1]
        block = min(triton.next_power_of_2(words), _WORDS_BLOCK)
        _launch(
            cross_entropy, (len(logits_NV),), logits_NV, logits_NV.stride(0), labels_N, losses_N, words,
            GRADIENT=gradient, BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip
        return logits_NV

    def unpack(self, data: Tensor, kind: int, out_RK: Tensor) -> None:
        rows, columns = out_RK.shape
        numbers = NF4_BLOCK if kind == NF4 else GGML_FORMATS[kind][1]
        count, blocks = columns // numbers, _UNPACKED // numbers
        grid = rows, triton.cdiv(count, blocks)
        to = data, data.stride(0), out_RK, out_RK.stride(0), count
        if kind == NF4:
            _launch(unpack_nf4, grid, *to, nf4_levels_on(data.device), BLOCKS=blocks)
        else:
            size = GGML_FORMATS[kind][2]
            _launch(unpack_blocks, grid, *to, KIND=kind, NUMBERS=numbers, BYTES=size, BLOCKS=blocks)

    def outer_product(self, left_TM: Tensor, right_TN: Tensor, scale: float) -> Tensor:
        if not _sums_in_fp32(left_TM):
            return super().outer_product(left_TM, right_TN, scale)
        return torch.mm(left_TM.T, right_TN, out_dtype=torch.float32).mul_(scale)


def try_on(device: torch.device) -> None:
    """Runs one kernel of two numbers there. Raises whatever goes wrong, `ArithmeticError` where they are not those."""
    x_TC, ops = torch.tensor([[3.0, 4.0]], device=device), TritonOps((device.type,))
    y_TC = ops.rms_norm(x_TC, torch.ones(2, device=device), 0.0)
    if not torch.allclose(y_TC, x_TC / 12.5**0.5):
        raise ArithmeticError(f"a norm is {y_TC.tolist()}")


def _sums_in_fp32(x: Tensor) -> bool:
    """Whether torch has products of such numbers that are not rounded to their format: from 2.8 on, on NVIDIA's
    cards."""
    known = hasattr(torch.ops.aten.mm, "dtype") and not torch.version.hip
    return known and x.is_cuda and x.dtype != torch.float32


def _launch(kernel: Any, grid: tuple[int, ...], first: Tensor, *others: Any, **constants: Any) -> None:
    """On the tensors' card: Triton takes the one that is current in this thread, whatever it is given."""
    with torch.cuda.device_of(first):
        kernel[grid](first, *others, **constants)


def _warps(block: int) -> int:
    """For a program of so many numbers, a power of two: some eight of them for each thread."""
    return min(max(block // 256, 1), 16)


class _Rotate(torch.autograd.Function):
    """q (T, H, D), k and v (T, Hkv, D) of the joined qkv. Without a norm, queries and keys are rotated in place, for
    nobody else reads the joined product, and nothing is kept: rotating back needs the angles alone."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, spec: AttentionSpec, rotation: Rotation) -> Any:
        to = qkv.new_empty(len(qkv), spec.qk_size) if spec.norm else qkv
        _rotate(qkv, to, spec, rotation)
        ctx.spec, ctx.rotation, ctx.shape, ctx.stride = spec, rotation, qkv.shape, qkv.stride(0)
        ctx.save_for_backward(qkv if spec.norm else None)
        parts = to[:, : spec.q_size], to[:, spec.q_size : spec.qk_size], qkv[:, spec.qk_size :]
        return tuple(part.unflatten(1, (-1, spec.head_dim)) for part in parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        dq, dk, dv = (_in_rows(grad.flatten(1)) for grad in grads)
        rows, width = ctx.shape
        d = dq.new_empty(rows, ctx.stride)[:, :width]
        x = d if x is None else x
        strides = dq.stride(0), dk.stride(0), dv.stride(0)
        arguments, constants = _angles(ctx.spec, ctx.rotation)
        rests = ctx.spec.rotary_dim < ctx.spec.head_dim
        _launch(
            rotary_backward, (rows, 3), dq, dk, dv, *strides, x, x.stride(0), d, d.stride(0), *arguments, RESTS=rests,
            **constants,
        )  # fmt: skip
        return d, None, None


def _rotate(x: Tensor, out: Tensor, spec: AttentionSpec, rotation: Rotation) -> None:
    """Writes queries and keys, normed and rotated, into the first columns of `out`, which may be x."""
    arguments, constants = _angles(spec, rotation)
    rests = spec.rotary_dim < spec.head_dim and out is not x
    grid = len(x), 2
    _launch(rotary_forward, grid, x, x.stride(0), out, out.stride(0), *arguments, RESTS=rests, **constants)


def _angles(spec: AttentionSpec, rotation: Rotation) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What both kernels of rotary.py need beside the tensors."""
    none = rotation.cosines  # in the place of weights, where there is no norm to read them
    weights = (none if w is None else w for w in (rotation.q_weight, rotation.k_weight))
    pairs = spec.rotary_dim // 2
    numbers = spec.heads, spec.kv_heads, spec.head_dim, pairs, spec.eps
    heads, block = triton.next_power_of_2(spec.heads), triton.next_power_of_2(pairs)
    rest = triton.next_power_of_2(max(spec.head_dim - spec.rotary_dim, 1))
    constants = {"NORM": spec.norm, "HEADS": heads, "PAIRS": block, "REST": rest, "num_warps": _warps(heads * block)}
    return (rotation.cosines, rotation.sines, rotation.rows_T, *weights, *numbers), constants


def _in_rows(x: Tensor) -> Tensor:
    """The numbers of a row side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()
