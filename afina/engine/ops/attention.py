"""Causal attention of rows, whose beginnings may be shared, in training, and with cached keys and values, in
generation.

T tokens, packed; S rows, whose paths have P tokens; H heads of D, Hkv of them of keys and values; E = (H + 2·Hkv)·D:
queries, keys and values side by side.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from afina.engine.ops._autograd import apply
from afina.engine.ops.cards import varlen
from afina.engine.ops.rotary import AttentionSpec, Rotation, rotate_by_torch
from afina.engine.ops.segments import OnDevices, Segments

_KEYS = 64  # cached keys are read in multiples of so many: libraries prepare themselves for each shape anew


def attend_by_torch(qkv_TE: Tensor, spec: AttentionSpec, rotation: Rotation | None, segments: Segments) -> Tensor:
    """`Ops.attend` in torch on any device."""
    q_TE, k_TE, v_TE = qkv_TE.split((spec.q_size, spec.kv_size, spec.kv_size), 1)
    v_THD = v_TE.unflatten(1, (-1, spec.head_dim))
    if rotation is None:
        q_THD, k_THD = (x_TE.unflatten(1, (-1, spec.head_dim)) for x_TE in (q_TE, k_TE))
    else:
        q_THD, k_THD = rotate_by_torch(qkv_TE, spec, rotation)
    return attend_rotated(q_THD, k_THD, v_THD, spec, segments)


def attend_rotated(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, spec: AttentionSpec, segments: Segments) -> Tensor:
    """`Ops.attend` after rotation; (T, H·D). What segments share is there once for each of them: P keys and values."""
    k_PHD, v_PHD = along_paths(k_THD, segments), along_paths(v_THD, segments)
    by = varlen.attend if varlen.takes(q_THD, spec) else attend_padded
    return by(q_THD, k_PHD, v_PHD, spec, segments)


def along_paths(x_THD: Tensor, segments: Segments) -> Tensor:
    """What the tokens of all paths have, (P, Hkv, D)."""
    if segments.paths is segments:
        return x_THD
    gathered: Tensor = apply(_Gathered, x_THD, segments.on(x_THD.device, "along_paths"))
    return gathered


class _Gathered(torch.autograd.Function):
    """x[at], where many of `at` may be the same: their gradients are summed in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, at: Tensor) -> Tensor:
        ctx.save_for_backward(at)
        ctx.tokens = len(x)
        return x.index_select(0, at)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (at,) = ctx.saved_tensors
        dx = dy.new_zeros(ctx.tokens, *dy.shape[1:], dtype=torch.float32)
        return dx.index_add_(0, at, dy.float()).to(dy.dtype), None


def attend_padded(q_THD: Tensor, k_PHD: Tensor, v_PHD: Tensor, spec: AttentionSpec, segments: Segments) -> Tensor:
    """The segments' queries are spread over a padded batch, and beside them the keys and values of their paths. Padding
    comes last: where no segment has an ancestor the causal mask hides it."""
    device, paths = q_THD.device, segments.paths
    mask_SQK = None
    if paths is not segments:
        at = torch.arange(paths.longest, device=device)
        own = torch.arange(segments.longest, device=device)
        query = segments.on(device, "starts_tensor")[:, None, None] + own[:, None]
        mask_SQK = (at <= query) & (query - at < (spec.window or paths.longest + segments.longest))
        mask_SQK[..., 0] |= ~mask_SQK.any(-1)  # queries that are padding see something, so that they are finite
    q, k, v = _padded(q_THD, segments), _padded(k_PHD, paths), _padded(v_PHD, paths)
    out = dense_attention(q, k, v, spec, mask_SQK)
    return out.transpose(1, 2)[segments.on(device, "rows_T"), segments.on(device, "places_T")].flatten(1)


def _padded(x_THD: Tensor, segments: Segments) -> Tensor:
    """(S, H, longest, D), with zeros after the tokens of each segment."""
    x_SLHD = x_THD.new_zeros(len(segments.lengths), segments.longest, *x_THD.shape[1:])
    at = segments.on(x_THD.device, "rows_T"), segments.on(x_THD.device, "places_T")
    return x_SLHD.index_put_(at, x_THD).transpose(1, 2)


def dense_attention(
    q_BHTD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, spec: AttentionSpec, mask_BTS: Tensor | None = None
) -> Tensor:
    """Attention over a padded batch, in torch on any device (here S keys); causal where no mask is given."""
    grouped = spec.heads != spec.kv_heads
    if not spec.cap and not (spec.window and mask_BTS is None and spec.window < k_BHSD.shape[2]):
        mask = None if mask_BTS is None else mask_BTS[:, None]
        if varlen.wants_repeats(q_BHTD, spec, mask is not None):
            (k_BHSD, v_BHSD), grouped = (_repeated(x, spec) for x in (k_BHSD, v_BHSD)), False
        return F.scaled_dot_product_attention(
            q_BHTD, k_BHSD, v_BHSD, mask, is_causal=mask is None, scale=spec.scale, enable_gqa=grouped
        )
    if mask_BTS is None:
        at = torch.arange(k_BHSD.shape[2], device=q_BHTD.device)
        mask_BTS = (at[:, None] >= at) & (at[:, None] - at < (spec.window or len(at)))
    k, v = _repeated(k_BHSD, spec), _repeated(v_BHSD, spec)
    scores = (q_BHTD @ k.transpose(2, 3)).float() * spec.scale
    if spec.cap:
        scores = spec.cap * torch.tanh(scores / spec.cap)
    mask = mask_BTS if mask_BTS.dim() == 2 else mask_BTS[:, None]
    return scores.masked_fill(~mask, float("-inf")).softmax(-1).to(v.dtype) @ v


def _repeated(x_BHSD: Tensor, spec: AttentionSpec) -> Tensor:
    """Each of the Hkv heads for the queries of its group."""
    return x_BHSD.repeat_interleave(spec.heads // spec.kv_heads, 1)


@dataclass(frozen=True, eq=False)
class Continued(OnDevices):
    """What the segments of a pass continue: segment s the before_S[s] tokens in slot slots_S[s] of the cache."""

    slots_S: Tensor
    before_S: Tensor


class Past(NamedTuple):
    """A layer's cache, keys and values (slots, Hkv, room, D), and what of it is continued."""

    keys: Tensor
    values: Tensor
    of: Continued


def attend_cached_by_torch(qk_TE: Tensor, v_TE: Tensor, spec: AttentionSpec, past: Past, segments: Segments) -> Tensor:
    keys, values = past.keys, past.values
    device = keys.device
    slots, before = past.of.on(device, "slots_S").long(), past.of.on(device, "before_S").long()
    longest = int((past.of.before_S + segments.lengths_S).max())  # on the host
    longest = min(keys.shape[2], -(-longest // _KEYS) * _KEYS)  # what is beyond is zeros or old, and masked
    rows, own = segments.on(device, "rows_T"), segments.on(device, "places_T")
    at = before[rows] + own
    keys[slots[rows], :, at] = qk_TE[:, spec.q_size :].unflatten(1, (spec.kv_heads, -1))
    values[slots[rows], :, at] = v_TE.unflatten(1, (spec.kv_heads, -1))
    last = before[:, None] + torch.arange(segments.longest, device=device)  # position of each query
    at = torch.arange(longest, device=device)
    seen = at <= last[..., None]
    if spec.window:
        seen &= at > last[..., None] - spec.window
    q = qk_TE.new_zeros(len(slots), segments.longest, spec.heads, spec.head_dim)
    q[rows, own] = qk_TE[:, : spec.q_size].unflatten(1, (spec.heads, -1))
    out = dense_attention(q.transpose(1, 2), keys[slots, :, :longest], values[slots, :, :longest], spec, seen)
    return out.transpose(1, 2)[rows, own].flatten(1)
