"""Keys and values of texts in the making, in place: a slot a text, freed and taken again as texts end and begin."""

import torch
from torch import Tensor

from afina.engine import ops
from afina.engine.kernels import Kernels
from afina.engine.ops import AttentionSpec, Past, Rotation, Segments


class Cache:
    """Room for `slots` texts of up to `room` tokens in each layer: keys and values (slots, Hkv, room, D).

    `empty` makes slots ready for new texts. Before a pass, `begin` says which slot each of its segments goes on with.
    """

    def __init__(
        self, specs: tuple[AttentionSpec, ...], slots: int, room: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.used = False
        self._lengths = torch.zeros(slots, dtype=torch.int32)
        shapes = [(slots, spec.kv_heads, room, spec.width) for spec in specs]
        self._layers = [
            (torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))
            for shape in shapes
        ]

    def empty(self, slots: list[int], like: int | None = None) -> None:
        """Makes the slots empty, or begin with the text in the slot `like`."""
        n = 0 if like is None else int(self._lengths[like])
        self._lengths[slots] = n
        for tensor in (tensor for layer in self._layers for tensor in layer) if n else ():
            tensor[slots, :, :n] = tensor[like, :, :n]

    def begin(self, slots: list[int]) -> None:
        self._slots = torch.tensor(slots, dtype=torch.int32)
        self._before = self._lengths[slots]

    def end(self, segments: Segments) -> None:
        self.used = True
        self._lengths[self._slots.long()] = self._before + segments.lengths_S

    def positions(self, segments: Segments) -> Tensor:
        return segments.positions_T + self._before[segments.rows_T]

    def lengths_T(self, segments: Segments) -> Tensor:
        """The length, new tokens included, of the text that each token belongs to."""
        return (self._before + segments.lengths_S)[segments.rows_T]

    def attend(
        self, layer: int, qkv_TE: Tensor, spec: AttentionSpec, rotation: Rotation | None, segments: Segments,
        fused: Kernels | None,
    ) -> Tensor:  # fmt: skip
        """What the new tokens see; their keys and values join the cache."""
        qk_TE = ops.rotate(fused, qkv_TE, spec, rotation)
        v_TE = qkv_TE[:, spec.qk_size :]
        if fused is not None:
            past = Past(*self._layers[layer], self._slots, self._before)
            return ops.attend_cached(fused, qk_TE, v_TE, spec, past, segments)
        return self._attend(layer, qk_TE, v_TE, spec, segments)

    def _attend(self, layer: int, qk_TE: Tensor, v_TE: Tensor, spec: AttentionSpec, segments: Segments) -> Tensor:
        """`ops.attend_cached` by torch, on any device."""
        keys, values = self._layers[layer]
        device = keys.device
        slots, before = self._slots.to(device).long(), self._before.to(device).long()
        rows, own = segments.rows_T.to(device), segments.positions_T.to(device).long()
        at = before[rows] + own
        keys[slots[rows], :, at] = qk_TE[:, spec.q_size :].unflatten(1, (spec.kv_heads, -1))
        values[slots[rows], :, at] = v_TE.unflatten(1, (spec.kv_heads, -1))
        longest = int(at.max()) + 1
        last = before[:, None] + torch.arange(segments.longest, device=device)  # position of each query
        at = torch.arange(longest, device=device)
        seen = at <= last[..., None]
        if spec.window:
            seen &= at > last[..., None] - spec.window
        q = qk_TE.new_zeros(len(slots), segments.longest, spec.heads, spec.width)
        q[rows, own] = qk_TE[:, : spec.q_size].unflatten(1, (spec.heads, -1))
        out = ops.dense_attention(q.transpose(1, 2), keys[slots, :, :longest], values[slots, :, :longest], spec, seen)
        return out.transpose(1, 2)[rows, own].flatten(1)
