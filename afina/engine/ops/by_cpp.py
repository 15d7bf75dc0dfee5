"""The operations on the processor, in the compiled kernels of ../cpp (kernels.py), forward and backward.

Every tensor is checked before a kernel computes addresses in it: `IndexError` where one does not fit. T tokens, packed;
N any width, O outputs of a layer, r its rank, R ranks of several adapters together.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from afina.engine import kernels
from afina.engine.kernels import LANES, Kernels
from afina.engine.ops._autograd import apply, empty_with_stride
from afina.engine.ops.attention import Past
from afina.engine.ops.few_rows import FewRows, Part
from afina.engine.ops.fused import FusedOps
from afina.engine.ops.low_rank import LowRankUpdate
from afina.engine.ops.rotary import NORM_EACH_HEAD, AttentionSpec, Rotation
from afina.engine.ops.segments import Segments
from afina.engine.ops.unpack import row_bytes


class CppOps(FusedOps):
    """What the compiled kernels do; the products of pairs of bf16 numbers only where the processor has them."""

    few = 24 if torch.cpu._is_amx_tile_supported() else 32

    def __init__(self, compiled: Kernels) -> None:
        self.kernels: Kernels = compiled

    def takes(self, x: Tensor) -> bool:
        return kernels.can_run(x)

    def norm_forward(
        self, x_TC: Tensor, added_TC: Tensor | None, weight_C: Tensor, eps: float, h_TC: Tensor, y_TC: Tensor,
        rstd_T: Tensor,
    ) -> None:  # fmt: skip
        shape = len(x_TC), x_TC.shape[1]
        kernels.expect(x_TC.dtype, (x_TC, shape), (x_TC if added_TC is None else added_TC, shape))
        kernels.expect(torch.float32, (weight_C, shape[1:]))
        self.kernels.call(
            "rms_forward", x_TC, x_TC.stride(0), *_or_none(added_TC), weight_C, h_TC, y_TC, rstd_T, *shape, eps,
            torch.get_num_threads(),
        )  # fmt: skip

    def norm_backward(
        self, dy_TC: Tensor, dh_TC: Tensor | None, h_TC: Tensor, weight_C: Tensor, rstd_T: Tensor, dx_TC: Tensor
    ) -> None:
        shape, dy_TC = (len(h_TC), h_TC.shape[1]), dy_TC.contiguous()
        kernels.expect(h_TC.dtype, (dy_TC, shape), (h_TC if dh_TC is None else dh_TC, shape))
        self.kernels.call(
            "rms_backward", dy_TC, *_or_none(dh_TC), h_TC, h_TC.stride(0), weight_C, rstd_T, dx_TC, dx_TC.stride(0),
            *shape, torch.get_num_threads(),
        )  # fmt: skip

    def gate_forward(self, gate_up_TI: Tensor, kind: int, out_TI: Tensor) -> None:
        rows, n = out_TI.shape
        kernels.expect(gate_up_TI.dtype, (gate_up_TI, (rows, 2 * n)))
        self.kernels.call(
            "gated_forward", gate_up_TI, gate_up_TI.stride(0), out_TI, rows, n, kind, torch.get_num_threads()
        )

    def gate_backward(self, gate_up_TI: Tensor, dout_TI: Tensor, kind: int, d_TI: Tensor) -> None:
        rows, n = len(d_TI), d_TI.shape[1] // 2
        dout_TI = dout_TI.contiguous()
        kernels.expect(d_TI.dtype, (dout_TI, (rows, n)))
        self.kernels.call(
            "gated_backward", gate_up_TI, gate_up_TI.stride(0), dout_TI, d_TI, rows, n, kind, torch.get_num_threads()
        )

    def rotate(self, qkv_TE: Tensor, spec: AttentionSpec, rotation: Rotation | None) -> Tensor:
        if rotation is None:
            return qkv_TE[:, : spec.qk_size]
        return _rotated(self.kernels, qkv_TE, spec, rotation)

    def attend(self, qkv_TE: Tensor, spec: AttentionSpec, rotation: Rotation | None, segments: Segments) -> Tensor:
        if rotation is not None and rotation.trains_norms:
            return super().attend(qkv_TE, spec, rotation, segments)
        out: Tensor = apply(_Attention, self.kernels, qkv_TE, spec, rotation, segments)
        return out

    def attend_cached(self, qk_TE: Tensor, v_TE: Tensor, spec: AttentionSpec, past: Past, segments: Segments) -> Tensor:
        out = qk_TE.new_empty(qk_TE.shape[0], spec.q_size)
        one_each = all(n == 1 for n in segments.lengths)
        struct = _attention_struct(qk_TE, v_TE, spec, segments)
        _check_past(qk_TE.dtype, spec, past, segments)
        self.kernels.call(
            "attention_step" if one_each else "attention_read", qk_TE, qk_TE.stride(0), v_TE, v_TE.stride(0),
            past.keys, past.values, past.keys.shape[2], past.of.slots_S, past.of.before_S, out, struct,
        )  # fmt: skip
        return out

    def check_labels(self, labels_N: Tensor, count: int, vocabulary: int) -> None:
        kernels.expect(torch.int64, (labels_N, (count,)))
        kernels.expect_below(vocabulary, labels_N)

    def chunk_losses(self, logits_NV: Tensor, labels_N: Tensor, losses_N: Tensor, gradient: bool) -> Tensor:
        logits_NV = logits_NV.contiguous()
        self.kernels.call(
            "cross_entropy", logits_NV, labels_N, losses_N, len(logits_NV), logits_NV.shape[1], int(gradient),
            torch.get_num_threads(),
        )  # fmt: skip
        return logits_NV

    def unpack(self, data: Tensor, kind: int, out_RK: Tensor) -> None:
        kernels.expect(torch.uint8, (data, (len(out_RK), row_bytes(kind, out_RK.shape[1]) or 0)))
        kernels.expect(out_RK.dtype, (out_RK, tuple(out_RK.shape)))
        self.kernels.call(
            "unpack", data, data.shape[1], kind, out_RK, out_RK.stride(0), *out_RK.shape, torch.get_num_threads(),
            dtype=out_RK.dtype,
        )  # fmt: skip

    def low_rank(self, b_OR: Tensor, scaling: float, dtype: torch.dtype) -> LowRankUpdate:
        outputs, rank = b_OR.shape
        if self._multiplies_pairs(dtype) and rank % LANES == 0 and outputs % (2 * LANES) == 0:
            return _PairsUpdate(self.kernels, b_OR, scaling)
        return super().low_rank(b_OR, scaling, dtype)

    def outer_product(self, left_TM: Tensor, right_TN: Tensor, scale: float) -> Tensor:
        left, right = left_TM.shape[1], right_TN.shape[1]
        if not self._multiplies_pairs(left_TM.dtype) or left % LANES or right % LANES:
            return (left_TM.T @ right_TN).float().mul_(scale)  # rounded to bf16: in fp32 it took two to eight times
        rows, out = len(left_TM), torch.empty(left, right)
        kernels.expect(torch.bfloat16, (left_TM, (rows, left)), (right_TN, (rows, right)))
        wide, low, strides = left_TM, right_TN, out.stride()
        if left < right:
            wide, low, strides = low, wide, strides[::-1]
        self.kernels.call(
            "low_rank_outer", wide, wide.stride(0), low, low.stride(0), out, *strides, scale, *wide.shape,
            low.shape[1], torch.get_num_threads(),
        )  # fmt: skip
        return out

    def few_rows(self, parts: Sequence[Part], inputs: int, bias: Tensor | None) -> FewRows | None:
        in_rows = all(part.weights.stride(1) == 1 for part in parts)
        return _FewRows(self.kernels, parts, inputs, bias) if in_rows and inputs % (2 * LANES) == 0 else None

    def _multiplies_pairs(self, dtype: torch.dtype) -> bool:
        return self.kernels.multiplies_pairs and dtype == torch.bfloat16


def _or_none(x_TC: Tensor | None) -> tuple[Tensor | None, int]:
    """Its address and stride, for a kernel that passes over what is not there."""
    return (None, 0) if x_TC is None else (x_TC, x_TC.stride(0))


def _c_heads(spec: AttentionSpec) -> kernels.Heads:
    return kernels.Heads(spec.heads, spec.kv_heads, spec.head_dim, spec.rotary_dim)


def _rotated(fused: Kernels, qkv_TE: Tensor, spec: AttentionSpec, rotation: Rotation | None) -> Tensor:
    """`Ops.rotate`."""
    if rotation is None:
        return qkv_TE[:, : spec.qk_size]
    out = qkv_TE.new_empty(len(qkv_TE), spec.qk_size)
    struct = _rotary_struct(qkv_TE, spec, rotation)
    fused.call("rotary_forward", qkv_TE, qkv_TE.stride(0), out, struct, len(out), torch.get_num_threads())
    return out


def _rotary_struct(qkv_TE: Tensor, spec: AttentionSpec, rotation: Rotation) -> kernels.Rotary:
    """What the kernels need to rotate `qkv_TE`."""
    kernels.expect(qkv_TE.dtype, (qkv_TE, (len(qkv_TE), spec.qk_size + spec.kv_size)))
    kernels.expect(torch.int32, (rotation.rows_T, (len(qkv_TE),)))
    shape = (len(rotation.cosines), spec.rotary_dim // 2)
    kernels.expect(torch.float32, (rotation.cosines, shape), (rotation.sines, shape))
    if spec.norm:
        each = spec.norm == NORM_EACH_HEAD
        widths = (spec.head_dim, spec.head_dim) if each else (spec.q_size, spec.kv_size)
        for weight, width in zip((rotation.q_weight, rotation.k_weight), widths, strict=True):
            assert weight is not None, "a norm has weights"
            kernels.expect(torch.float32, (weight, (width,)))
    tensors = (rotation.cosines, rotation.sines, rotation.rows_T, rotation.q_weight, rotation.k_weight)
    addresses = (None if t is None else t.data_ptr() for t in tensors)
    return kernels.Rotary(*addresses, _c_heads(spec), spec.norm, spec.eps)


def _attention_struct(qk: Tensor, v: Tensor, spec: AttentionSpec, segments: Segments) -> kernels.Attention:
    """What the kernels need to attend."""
    tokens = segments.bounds[-1]
    kernels.expect(qk.dtype, (qk, (tokens, spec.qk_size)), (v, (tokens, spec.kv_size)))
    return kernels.Attention(
        len(segments.lengths),
        segments.bounds_tensor.data_ptr(),
        segments.starts_tensor.data_ptr(),
        segments.parents_tensor.data_ptr(),
        len(segments.trees_tensor) - 1,
        segments.trees_tensor.data_ptr(),
        _c_heads(spec),
        spec.scale,
        spec.window,
        spec.cap,
        torch.get_num_threads(),
    )


class _Attention(torch.autograd.Function):
    """Formulas: attention.cpp. qkv, the output and log Σ exp of the scores are saved; the rest is recomputed."""

    @staticmethod
    def forward(
        ctx: Any, fused: Kernels, qkv: Tensor, spec: AttentionSpec, rotation: Rotation | None, segments: Segments
    ) -> Tensor:
        qk = _rotated(fused, qkv, spec, rotation)
        k, v = qk[:, spec.q_size :], qkv[:, spec.qk_size :]
        out, lse = qk.new_empty(len(qk), spec.q_size), torch.empty(len(qk), spec.heads)
        struct = _attention_struct(qk, v, spec, segments)
        fused.call("attention_forward", qk, qk.stride(0), k, k.stride(0), v, v.stride(0), out, lse, struct)
        ctx.fused, ctx.spec, ctx.rotation, ctx.segments = fused, spec, rotation, segments
        ctx.save_for_backward(qkv, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:
        qkv, out, lse = ctx.saved_tensors
        fused, spec, rotation, segments = ctx.fused, ctx.spec, ctx.rotation, ctx.segments
        dout = dout.contiguous()
        qk = _rotated(fused, qkv, spec, rotation)
        k, v = qk[:, spec.q_size :], qkv[:, spec.qk_size :]
        d = empty_with_stride(qkv, qkv.stride(0))
        struct = _attention_struct(qk, v, spec, segments)
        kernels.expect(out.dtype, (dout, tuple(out.shape)))
        fused.call(
            "attention_backward", qk, qk.stride(0), k, k.stride(0), v, v.stride(0), out, lse, dout, d, d.stride(0),
            struct,
        )  # fmt: skip
        if rotation is not None:
            rotary = _rotary_struct(qkv, spec, rotation)  # d and qkv share their stride
            fused.call("rotary_backward", d, qkv, d.stride(0), rotary, len(d), torch.get_num_threads())
        return None, d, None, None, None


def _check_past(dtype: torch.dtype, spec: AttentionSpec, past: Past, segments: Segments) -> None:
    """That each has room is checked once for all layers (`Cache.begin`)."""
    slots, _, room, _ = past.keys.shape
    shape = (slots, spec.kv_heads, room, spec.head_dim)
    kernels.expect(dtype, (past.keys, shape), (past.values, shape))
    kernels.expect(torch.int32, *((each, (len(segments.lengths),)) for each in (past.of.slots_S, past.of.before_S)))
    if not (past.keys.is_contiguous() and past.values.is_contiguous()):
        raise IndexError("the cache is not contiguous")


class _PairsUpdate(LowRankUpdate):
    """In bf16, with B in two orders, of which each kernel reads one from front to back."""

    def __init__(self, fused: Kernels, b_OR: Tensor, scaling: float) -> None:
        self._fused, self._shape = fused, tuple(b_OR.shape)
        b = b_OR.detach().contiguous()
        kernels.expect(torch.float32, (b, self._shape))
        self._by_rank, self._by_output = (b.new_empty(b.numel(), dtype=torch.bfloat16) for _ in range(2))
        fused.call("low_rank_pack", b, scaling, self._by_rank, self._by_output, *b.shape, dtype=torch.bfloat16)

    def _expect(self, y_TO: Tensor, low_TR: Tensor) -> None:
        outputs, rank = self._shape
        kernels.expect(torch.bfloat16, (y_TO, (len(y_TO), outputs)), (low_TR, (len(y_TO), rank)))

    def add(self, y_TO: Tensor, low_TR: Tensor) -> None:
        self._expect(y_TO, low_TR)
        self._fused.call(
            "low_rank_add", y_TO, y_TO.stride(0), low_TR, low_TR.stride(0), self._by_rank, *y_TO.shape,
            low_TR.shape[1], torch.get_num_threads(),
        )  # fmt: skip

    def project(self, dy_TO: Tensor, dlow_TR: Tensor) -> None:
        self._expect(dy_TO, dlow_TR)
        self._fused.call(
            "low_rank_project", dy_TO, dy_TO.stride(0), self._by_output, dlow_TR, dlow_TR.stride(0),
            *dy_TO.shape, dlow_TR.shape[1], torch.get_num_threads(),
        )  # fmt: skip


class _FewRows:
    """The weights are read once, as fast as memory gives them, the updates in the same sums."""

    def __init__(self, fused: Kernels, parts: Sequence[Part], inputs: int, bias: Tensor | None) -> None:
        self._fused, self._inputs, self._bias = fused, inputs, bias
        self._total = sum(part.outputs for part in parts)
        self._kept: list[Tensor | None] = []  # what the slices point to
        self._slices = (kernels.OutputSlice * len(parts))()
        column = 0
        for i, part in enumerate(parts):
            self._slices[i] = self._slice(part, column)
            column += part.outputs

    def _slice(self, part: Part, column: int) -> kernels.OutputSlice:
        weights, a, b = part.weights, part.a_RI, part.b_OR
        width = self._inputs if part.kind is None else row_bytes(part.kind, self._inputs)
        if tuple(weights.shape) != (part.outputs, width):
            raise IndexError(f"a layer's weights are {tuple(weights.shape)}, expected {(part.outputs, width)}")
        own: tuple[Any, ...] = (0, None, None)
        if a is not None and b is not None:
            rank = len(a)
            kernels.expect(a.dtype, (a, (rank, self._inputs)), (b, (part.outputs, rank)))
            b = F.pad(b, (0, -rank % (2 * LANES)))
            own = rank, a.data_ptr(), b.data_ptr()
        self._kept += [weights, a, b]
        stored = weights.data_ptr(), weights.stride(0) * weights.element_size()
        kind = kernels.NUMBERS if part.kind is None else part.kind
        return kernels.OutputSlice(column, column + part.outputs, *own, *stored, kind)

    def product(self, x_TI: Tensor) -> Tensor:
        y = x_TI.new_empty(x_TI.shape[0], self._total)
        kernels.expect(x_TI.dtype, (x_TI, (len(y), self._inputs)))
        if self._bias is not None:
            kernels.expect(x_TI.dtype, (self._bias[: self._total], (self._total,)))
        self._fused.call(
            "few_rows", x_TI, x_TI.stride(0), self._bias, y, self._total, self._slices, len(self._slices),
            *x_TI.shape, torch.get_num_threads(),
        )  # fmt: skip
        return y
