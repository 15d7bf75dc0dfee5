"""The decoder's operations between its matrix products, each with a hand-derived backward pass.

Each runs in a fused kernel where `fused` is given (see kernels.py), else in torch, on any device. T tokens, packed: the rows of a
batch follow one another without padding. C channels, I the MLP's inner width, H heads of D. Inputs may be strided by row.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from afina.engine import blocks, kernels
from afina.engine.blocks import Blocks
from afina.engine.kernels import Kernels


@dataclass(frozen=True)
class Segments:
    """Where the rows of a packed batch begin and end: row s holds tokens bounds[s] to bounds[s + 1]; positions restart."""

    bounds: tuple[int, ...]

    @cached_property
    def lengths(self) -> list[int]:
        return [b - a for a, b in zip(self.bounds, self.bounds[1:], strict=False)]

    @cached_property
    def longest(self) -> int:
        return max(self.lengths)

    @cached_property
    def bounds_tensor(self) -> Tensor:
        return torch.tensor(self.bounds, dtype=torch.int32)

    @cached_property
    def lengths_S(self) -> Tensor:
        return self.bounds_tensor.diff()

    @cached_property
    def rows_T(self) -> Tensor:
        """The row that each token belongs to."""
        return torch.arange(len(self.bounds) - 1).repeat_interleave(self.lengths_S)

    @cached_property
    def lengths_T(self) -> Tensor:
        """The length of the row that each token belongs to."""
        return self.lengths_S[self.rows_T]

    @cached_property
    def positions_T(self) -> Tensor:
        return torch.arange(self.bounds[-1], dtype=torch.int32) - self.bounds_tensor[self.rows_T]


@dataclass(frozen=True)
class AttentionSpec:
    """What is fixed of an attention layer. `norm` of q and k before rotation: none, each head, or all heads together."""

    heads: int
    kv_heads: int
    width: int
    rotated: int
    scale: float
    norm: int = 0
    eps: float = 0.0
    window: int = 0
    cap: float = 0.0

    @property
    def q_size(self) -> int:
        return self.heads * self.width

    @property
    def qk_size(self) -> int:
        return (self.heads + self.kv_heads) * self.width

    def c_heads(self) -> kernels.Heads:
        return kernels.Heads(self.heads, self.kv_heads, self.width, self.rotated)


NO_NORM, NORM_EACH_HEAD, NORM_ALL_HEADS = 0, 1, 2


@dataclass(frozen=True)
class Rotation:
    """Tables (angles, rotated / 2) in fp32, each token's row in them, and the norms' weights, in fp32, where there are any."""

    cosines: Tensor
    sines: Tensor
    rows_T: Tensor
    wq: Tensor | None = None
    wk: Tensor | None = None


def like_rows(x: Tensor) -> Tensor:
    """New memory of x's shape and row stride: a gradient laid out as what it belongs to, with the same room beside it."""
    stride = x.stride(0)
    return x.new_empty(x.shape[0], stride)[:, : x.shape[1]]


class _NoContext:
    """The context of a forward pass that no backward pass follows."""

    def save_for_backward(self, *_: Any) -> None: ...

    def set_materialize_grads(self, value: bool) -> None: ...


def _run(function: Any, *arguments: Any) -> Any:
    """Applies an autograd function, without its bookkeeping where no gradient is wanted."""
    return function.apply(*arguments) if torch.is_grad_enabled() else function.forward(_NoContext(), *arguments)


# ------------------------------------------------------------------------------------------------ RMSNorm


def rms_norm(fused: Kernels | None, x_TC: Tensor, weight_C: Tensor, eps: float) -> Tensor:
    """y = w · x / √(mean x² + eps), the mean in fp32 (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467)."""
    if fused is None:
        return _rms(x_TC, weight_C, eps)
    y: Tensor = _run(_RmsNorm, fused, x_TC, None, weight_C, eps)
    return y


def add_rms_norm(
    fused: Kernels | None, x_TC: Tensor, added_TC: Tensor, weight_C: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """(h, y): h = x + added, and y the norm of h."""
    if fused is None:
        h_TC = x_TC + added_TC
        return h_TC, _rms(h_TC, weight_C, eps)
    both: tuple[Tensor, Tensor] = _run(_RmsNorm, fused, x_TC, added_TC, weight_C, eps)
    return both


def _rms(x_TC: Tensor, weight_C: Tensor, eps: float) -> Tensor:
    x32 = x_TC.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps) * weight_C.float()).to(x_TC.dtype)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fused: Kernels, x: Tensor, added: Tensor | None, weight: Tensor, eps: float) -> Any:
        rows, n = x.shape
        weight = weight.float()
        y, rstd = torch.empty(rows, n, dtype=x.dtype), torch.empty(rows)
        h = torch.empty_like(y) if added is not None else x
        fused.call(
            "rms_forward", x, x.stride(0), *((None, 0) if added is None else (added, added.stride(0))), weight, h, y,
            rstd, rows, n, eps, torch.get_num_threads(),
        )  # fmt: skip
        ctx.fused = fused
        ctx.save_for_backward(h, weight, rstd)
        ctx.room = (x if added is None else added).stride(0)
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
        dx = h.new_empty(rows, ctx.room)[:, :n]
        ctx.fused.call(
            "rms_backward", dy, *((None, 0) if dh is None else (dh, dh.stride(0))), h, h.stride(0), weight, rstd, dx,
            dx.stride(0), rows, n, torch.get_num_threads(),
        )  # fmt: skip
        dw = (dy.float() * h.float() * rstd[:, None]).sum(0) if ctx.needs_input_grad[3] else None
        return None, dx, dx if ctx.added else None, dw, None


# ------------------------------------------------------------------------------------------------ gated MLP

GATES: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "silu": (0, F.silu),
    "gelu_pytorch_tanh": (1, lambda x: F.gelu(x, approximate="tanh")),
}


def gated(fused: Kernels | None, gate_up_TI: Tensor, kind: str) -> Tensor:
    """act(gate) · up of a joined (T, 2I) product (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""
    if fused is None:
        gate, up = gate_up_TI.chunk(2, -1)
        return GATES[kind][1](gate) * up
    out: Tensor = _run(_Gated, fused, gate_up_TI, GATES[kind][0])
    return out


class _Gated(torch.autograd.Function):
    """out = g·σ(a(g))·u:  du = dout·g·σ,  dg = dout·u·(σ + g·σ(1 − σ)·a′(g)), with a(g) = g for SiLU."""

    @staticmethod
    def forward(ctx: Any, fused: Kernels, gate_up: Tensor, kind: int) -> Tensor:
        rows, n = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(rows, n)
        fused.call("gated_forward", gate_up, gate_up.stride(0), out, rows, n, kind, torch.get_num_threads())
        ctx.fused, ctx.kind = fused, kind
        ctx.save_for_backward(gate_up)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:
        (gate_up,) = ctx.saved_tensors
        d = like_rows(gate_up)
        n = gate_up.shape[1] // 2
        dout = dout.contiguous()
        ctx.fused.call(
            "gated_backward", gate_up, gate_up.stride(0), dout, d, len(d), n, ctx.kind, torch.get_num_threads()
        )
        return None, d, None


# ------------------------------------------------------------------------------------------------ attention


def attention(
    fused: Kernels | None, qkv_TE: Tensor, spec: AttentionSpec, rotation: Rotation | None, segments: Segments
) -> Tensor:
    """Causal attention of each row of the pack to itself alone; (T, H·D). `qkv_TE` holds queries, keys and values side by side.

    Queries and keys are normed and rotated here (Su et al. 2021, https://arxiv.org/abs/2104.09864). Costs what the rows cost one
    by one, not the square of the pack.
    """
    trained_norm = rotation is not None and any(w is not None and w.requires_grad for w in (rotation.wq, rotation.wk))
    if fused is None or trained_norm:
        return _attention(qkv_TE, spec, rotation, segments)
    out: Tensor = _run(_Attention, fused, qkv_TE, spec, rotation, segments)
    return out


def rotate(fused: Kernels | None, qkv_TE: Tensor, spec: AttentionSpec, rotation: Rotation | None) -> Tensor:
    """Queries and keys, normed and rotated, side by side: (T, (H + Hkv)·D)."""
    if rotation is None:
        return qkv_TE[:, : spec.qk_size]
    if fused is None:
        return torch.cat([part.flatten(1) for part in _rotated(qkv_TE, spec, rotation)], 1)
    out = qkv_TE.new_empty(len(qkv_TE), spec.qk_size)
    struct = _rotary_struct(spec, rotation)
    fused.call(
        "rotary_forward", qkv_TE, qkv_TE.stride(0), out, ctypes.addressof(struct), len(out), torch.get_num_threads()
    )
    return out


def _rotary_struct(spec: AttentionSpec, rotation: Rotation) -> kernels.Rotary:
    tensors = (rotation.cosines, rotation.sines, rotation.rows_T, rotation.wq, rotation.wk)
    addresses = (None if t is None else t.data_ptr() for t in tensors)
    return kernels.Rotary(*addresses, spec.c_heads(), spec.norm, spec.eps)


def _attention_struct(spec: AttentionSpec, segments: Segments) -> kernels.Attention:
    return kernels.Attention(
        len(segments.lengths),
        segments.bounds_tensor.data_ptr(),
        spec.c_heads(),
        spec.scale,
        spec.window,
        spec.cap,
        torch.get_num_threads(),
    )


class _Attention(torch.autograd.Function):
    """Formulas: kernels.cpp. Saved are qkv, the output and log Σ exp of the scores; the rest is computed again."""

    @staticmethod
    def forward(
        ctx: Any, fused: Kernels, qkv: Tensor, spec: AttentionSpec, rotation: Rotation | None, segments: Segments
    ) -> Tensor:
        qk = rotate(fused, qkv, spec, rotation)
        k, v = qk[:, spec.q_size :], qkv[:, spec.qk_size :]
        out, lse = qk.new_empty(len(qk), spec.q_size), torch.empty(len(qk), spec.heads)
        struct = _attention_struct(spec, segments)
        fused.call(
            "attention_forward", qk, qk.stride(0), k, k.stride(0), v, v.stride(0), out, lse, ctypes.addressof(struct)
        )
        ctx.fused, ctx.spec, ctx.rotation, ctx.segments = fused, spec, rotation, segments
        ctx.save_for_backward(qkv, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:
        qkv, out, lse = ctx.saved_tensors
        fused, spec, rotation, segments = ctx.fused, ctx.spec, ctx.rotation, ctx.segments
        dout = dout.contiguous()
        qk = rotate(fused, qkv, spec, rotation)
        k, v = qk[:, spec.q_size :], qkv[:, spec.qk_size :]
        d = like_rows(qkv)
        struct = _attention_struct(spec, segments)
        fused.call(
            "attention_backward", qk, qk.stride(0), k, k.stride(0), v, v.stride(0), out, lse, dout, d, d.stride(0),
            ctypes.addressof(struct),
        )  # fmt: skip
        if rotation is not None:
            turned = _rotary_struct(spec, rotation)  # d and qkv share their stride
            fused.call(
                "rotary_backward", d, qkv, d.stride(0), ctypes.addressof(turned), len(d), torch.get_num_threads()
            )
        return None, d, None, None, None


class Past(NamedTuple):
    """What segments go on with: segment s comes after the before[s] tokens in slot slots[s] of keys and values (slots, Hkv, room, D)."""

    keys: Tensor
    values: Tensor
    slots_S: Tensor
    before_S: Tensor


def attend_cached(
    fused: Kernels, qk_TE: Tensor, v_TE: Tensor, spec: AttentionSpec, past: Past, segments: Segments
) -> Tensor:
    """Attention after rotation, of segments to their past and to themselves; (T, H·D). Their keys and values join the past."""
    out = qk_TE.new_empty(qk_TE.shape[0], spec.q_size)
    one = len(segments.lengths) == qk_TE.shape[0]
    struct = _attention_struct(spec, segments)
    fused.call(
        "attention_step" if one else "attention_read", qk_TE, qk_TE.stride(0), v_TE, v_TE.stride(0),
        past.keys, past.values, past.keys.shape[2], past.slots_S, past.before_S, out, ctypes.addressof(struct),
    )  # fmt: skip
    return out


def _rotated(qkv_TE: Tensor, spec: AttentionSpec, rotation: Rotation) -> tuple[Tensor, Tensor]:
    """q (T, H, D) and k (T, Hkv, D), normed and rotated, by torch."""
    parts = []
    cos, sin = (table[rotation.rows_T.long()][:, None].repeat(1, 1, 2) for table in (rotation.cosines, rotation.sines))
    for x, w in (
        (qkv_TE[:, : spec.q_size], rotation.wq),
        (qkv_TE[:, spec.q_size : spec.qk_size], rotation.wk),
    ):
        if spec.norm == NORM_ALL_HEADS and w is not None:
            x = _rms(x, w, spec.eps)
        x_THD = x.unflatten(1, (-1, spec.width))
        if spec.norm == NORM_EACH_HEAD and w is not None:
            x_THD = _rms(x_THD, w, spec.eps)
        turned, rest = x_THD[..., : spec.rotated].float(), x_THD[..., spec.rotated :]
        a, b = turned.chunk(2, -1)
        turned = turned * cos + torch.cat([-b, a], -1) * sin
        parts.append(torch.cat([turned.to(rest.dtype), rest], -1))
    return parts[0], parts[1]


def _attention(qkv_TE: Tensor, spec: AttentionSpec, rotation: Rotation | None, segments: Segments) -> Tensor:
    """By torch: the rows are spread over a padded batch. Padding comes last, so the causal mask hides it."""
    v_THD = qkv_TE[:, spec.qk_size :].unflatten(1, (-1, spec.width))
    positions = segments.positions_T.to(qkv_TE.device)
    if rotation is None:
        q_THD, k_THD = (
            x.unflatten(1, (-1, spec.width)) for x in (qkv_TE[:, : spec.q_size], qkv_TE[:, spec.q_size : spec.qk_size])
        )
    else:
        q_THD, k_THD = _rotated(qkv_TE, spec, rotation)
    rows = segments.rows_T.to(positions.device)
    shape = (len(segments.lengths), segments.longest)

    def spread(x_THD: Tensor) -> Tensor:
        batch = x_THD.new_zeros(*shape, *x_THD.shape[1:])
        return batch.index_put((rows, positions.long()), x_THD).transpose(1, 2)

    out = dense_attention(spread(q_THD), spread(k_THD), spread(v_THD), spec)
    return out.transpose(1, 2)[rows, positions.long()].flatten(1)


def dense_attention(
    q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, spec: AttentionSpec, mask_BTS: Tensor | None = None
) -> Tensor:
    """Attention on a dense batch by torch; causal where no mask is given."""
    grouped = spec.heads != spec.kv_heads
    if not spec.cap and not (spec.window and mask_BTS is None and spec.window < k_BHSD.shape[2]):
        mask = None if mask_BTS is None else mask_BTS[:, None]
        return F.scaled_dot_product_attention(
            q_BHTD, k_BHSD, v_BHSD, mask, is_causal=mask is None, scale=spec.scale, enable_gqa=grouped
        )
    if mask_BTS is None:
        at = torch.arange(k_BHSD.shape[2], device=q_BHTD.device)
        mask_BTS = (at[:, None] >= at) & (at[:, None] - at < (spec.window or len(at)))
    k, v = (x.repeat_interleave(spec.heads // spec.kv_heads, 1) for x in (k_BHSD, v_BHSD))
    scores = (q_BHTD @ k.transpose(2, 3)).float() * spec.scale
    if spec.cap:
        scores = spec.cap * torch.tanh(scores / spec.cap)
    mask = mask_BTS if mask_BTS.dim() == 2 else mask_BTS[:, None]
    return scores.masked_fill(~mask, float("-inf")).softmax(-1).to(v.dtype) @ v


# ------------------------------------------------------------------------------------------------ cross-entropy

_WORDS = 4096  # whose gradients are added at one time
CHUNK = 256  # labelled positions whose logits exist at one time
ROUND = 64  # rows of products are filled up to a multiple of this: the matrix library keeps some MB for each new shape


def cross_entropy(fused: Kernels | None, hidden_NC: Tensor, head_VC: Tensor | Blocks, labels_N: Tensor) -> Tensor:
    """Σ −log p(label) with logits = hidden · headᵀ, in chunks: no (tokens × vocabulary) array ever exists.

    A head in blocks is written out tile by tile. The gradient of a frozen head's input, (softmax − onehot) · head, is formed in the forward pass, while the logits are there.
    """
    if isinstance(head_VC, Tensor) and not torch.is_grad_enabled():  # autograd's functions do not know of that
        head_VC = head_VC.detach()
    loss: Tensor = _CrossEntropy.apply(fused, hidden_NC, head_VC, labels_N)  # type: ignore[no-untyped-call]
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fused: Kernels | None, hidden: Tensor, head: Tensor | Blocks, labels: Tensor) -> Tensor:
        wanted, weighted = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        ctx.rows = len(labels)
        if missing := -ctx.rows % ROUND:  # rows of zeros, whose losses and gradients nobody reads
            hidden, labels = F.pad(hidden, (0, 0, 0, missing)), F.pad(labels, (0, missing))
        dhidden = torch.empty_like(hidden) if wanted else None
        dhead = torch.zeros(head.shape, device=hidden.device) if weighted and isinstance(head, Tensor) else None
        losses = torch.empty(len(labels), device=hidden.device)
        for at in range(0, len(labels), CHUNK):
            part = slice(at, at + CHUNK)
            x = hidden[part]
            logits = blocks.product(x, head) if isinstance(head, Blocks) else F.linear(x, head)
            if fused is not None:
                fused.call(
                    "cross_entropy", logits, labels[part], losses[part], len(logits), logits.shape[1],
                    int(wanted or weighted), torch.get_num_threads(),
                )  # fmt: skip
            else:
                log_p = logits.float().log_softmax(-1)
                losses[part] = F.nll_loss(log_p, labels[part], reduction="none")
                log_p.exp_()[torch.arange(len(logits), device=logits.device), labels[part]] -= 1
                logits = log_p.to(hidden.dtype)
            if dhidden is not None and isinstance(head, Blocks):
                dhidden[part] = blocks.product_back(logits, head)
            elif dhidden is not None and isinstance(head, Tensor):
                torch.mm(logits, head, out=dhidden[part])
            if dhead is not None:  # by words: a sum with another format's numbers takes a copy of them in its own
                for words in range(0, len(dhead), _WORDS):
                    dhead[words : words + _WORDS] += logits[:, words : words + _WORDS].T @ x
        ctx.save_for_backward(None if dhidden is None else dhidden[: ctx.rows], dhead)
        return losses[: ctx.rows].sum()

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> Any:
        dhidden, dhead = ctx.saved_tensors
        # In place: a head's gradient is large.
        scaled = (None if d is None else d.mul_(dloss) for d in (dhidden, dhead))
        return None, *scaled, None
