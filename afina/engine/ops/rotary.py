"""Queries and keys before attention: their norms, and rotary positions.

T tokens, packed; H heads of D, Hkv of them of keys and values; E = (H + 2·Hkv)·D: queries, keys and values side by
side.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from afina.engine.limits import MOST_HEADS, MOST_POSITIONS, WIDEST_HEAD, finite, whole
from afina.engine.ops.norms import rms_norm_by_torch

NO_NORM, NORM_EACH_HEAD, NORM_ALL_HEADS = 0, 1, 2


@dataclass(frozen=True)
class AttentionSpec:
    """The constants of an attention layer.

    `norm` is what q and k get before rotation: none, RMSNorm over each head, or over all heads together, with `eps`. A
    query sees `window` keys, itself included (0: all before it); scores become cap·tanh(score / cap) where `cap` is
    not 0. Raises `ValueError` for numbers that no attention has: kernels compute addresses from them.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    scale: float
    norm: int = NO_NORM
    eps: float = 0.0
    window: int = 0
    cap: float = 0.0

    def __post_init__(self) -> None:
        whole("attention heads", self.heads, 1, MOST_HEADS)
        whole("heads of keys and values", self.kv_heads, 1, self.heads)
        whole("numbers per head", self.head_dim, 1, WIDEST_HEAD)
        whole("rotated numbers per head", self.rotary_dim, 0, self.head_dim)
        whole("window", self.window, 0, MOST_POSITIONS)
        whole("norm", self.norm, NO_NORM, NORM_ALL_HEADS)
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} attention heads cannot share {self.kv_heads} heads of keys and values")
        if self.rotary_dim % 2:
            raise ValueError(f"{self.rotary_dim} rotated numbers per head, expected an even number")
        for name, value in (("scale", self.scale), ("eps", self.eps), ("cap", self.cap)):
            finite(name, value)

    @property
    def q_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def qk_size(self) -> int:
        return (self.heads + self.kv_heads) * self.head_dim

    @property
    def kv_size(self) -> int:
        """Outputs of the key layer, and of the value layer."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Rotation:
    """What `rotate` applies: cosines and sines (angles, rotary_dim / 2) in fp32, each token's row in these tables, and
    the weights of the norms of q and k in fp32, where there are any."""

    cosines: Tensor
    sines: Tensor
    rows_T: Tensor
    q_weight: Tensor | None = None
    k_weight: Tensor | None = None

    @property
    def trains_norms(self) -> bool:
        return any(w is not None and w.requires_grad for w in (self.q_weight, self.k_weight))


def rotate_by_torch(qkv_TE: Tensor, spec: AttentionSpec, rotation: Rotation) -> tuple[Tensor, Tensor]:
    """q (T, H, D) and k (T, Hkv, D), normed and rotated, in torch on any device."""
    cos, sin = (table[rotation.rows_T.long()][:, None].repeat(1, 1, 2) for table in (rotation.cosines, rotation.sines))

    def rotated(x: Tensor, weight: Tensor | None) -> Tensor:
        if spec.norm == NORM_ALL_HEADS and weight is not None:
            x = rms_norm_by_torch(x, weight, spec.eps)
        x_THD = x.unflatten(1, (-1, spec.head_dim))
        if spec.norm == NORM_EACH_HEAD and weight is not None:
            x_THD = rms_norm_by_torch(x_THD, weight, spec.eps)
        turned, rest = x_THD[..., : spec.rotary_dim].float(), x_THD[..., spec.rotary_dim :]
        a, b = turned.chunk(2, -1)
        turned = turned * cos + torch.cat([-b, a], -1) * sin
        return torch.cat([turned.to(rest.dtype), rest], -1)

    q, k = qkv_TE[:, : spec.q_size], qkv_TE[:, spec.q_size : spec.qk_size]
    return rotated(q, rotation.q_weight), rotated(k, rotation.k_weight)
