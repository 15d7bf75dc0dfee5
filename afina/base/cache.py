"""Keys and values of texts in the making, in place: a slot a text, freed and taken again as texts end and begin."""

import torch
from torch import Tensor

from afina.base import kernels, ops
from afina.base.kernels import Kernels
from afina.base.ops import AttentionSpec, Rotation, Segments


class Cache:
    """Room for `slots` texts of up to `room` tokens in each layer. keys (slots, Hkv, D, room), values (slots, Hkv, room, D).

    Before a pass, `begin` says which slots its tokens belong to: whole prompts into empty slots, or one token a slot.
    """

    def __init__(
        self, specs: tuple[AttentionSpec, ...], slots: int, room: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.room = -(-room // kernels.LANES) * kernels.LANES
        self.lengths = torch.zeros(slots, dtype=torch.int32)
        self._layers = [
            (
                torch.zeros(slots, s.kv_heads, s.width, self.room, dtype=dtype, device=device),
                torch.zeros(slots, s.kv_heads, self.room, s.width, dtype=dtype, device=device),
            )
            for s in specs
        ]

    def begin(self, slots: list[int], prompts: bool) -> None:
        self._slots = torch.tensor(slots, dtype=torch.int32)
        self._reading = prompts
        if prompts:
            self.lengths[slots] = 0
        self._before = self.lengths[self._slots.long()]

    def end(self, segments: Segments) -> None:
        self.lengths[self._slots.long()] = self._before + torch.tensor(segments.lengths, dtype=torch.int32)

    def positions(self, segments: Segments) -> Tensor:
        return segments.positions_T if self._reading else self._before

    def lengths_T(self, segments: Segments) -> Tensor:
        """The length, new tokens included, of the text that each token belongs to."""
        return segments.lengths_T if self._reading else self._before + 1

    def attend(
        self, layer: int, qkv_TE: Tensor, spec: AttentionSpec, rotation: Rotation | None, segments: Segments,
        fused: Kernels | None,
    ) -> Tensor:  # fmt: skip
        """What the new tokens see; their keys and values join the cache."""
        qk_TE = ops.rotate(fused, qkv_TE, spec, rotation)
        v_TE = qkv_TE[:, spec.qk_size :]
        if not self._reading:
            if fused is not None:
                return ops.attend_step(fused, qk_TE, v_TE, spec, self._layers[layer], self._slots, self._before)
            return self._step(layer, qk_TE, v_TE, spec)
        k_TE = qk_TE[:, spec.q_size :]
        keys, values = self._layers[layer]
        for i, slot in enumerate(self._slots.tolist()):
            at, end = segments.bounds[i], segments.bounds[i + 1]
            keys[slot, :, :, : end - at] = k_TE[at:end].unflatten(1, (spec.kv_heads, -1)).permute(1, 2, 0)
            values[slot, :, : end - at] = v_TE[at:end].unflatten(1, (spec.kv_heads, -1)).transpose(0, 1)
        if fused is not None:
            return ops.attend(fused, qk_TE, v_TE, spec, segments)[0]
        return ops.attention(None, torch.cat([qk_TE, v_TE], 1), spec, None, segments)

    def _step(self, layer: int, qk_BE: Tensor, v_BE: Tensor, spec: AttentionSpec) -> Tensor:
        """`ops.attend_step` by torch, on any device."""
        keys, values = self._layers[layer]
        slots, before = (t.to(qk_BE.device).long() for t in (self._slots, self._before))
        keys[slots, :, :, before] = qk_BE[:, spec.q_size :].unflatten(1, (spec.kv_heads, -1))
        values[slots, :, before] = v_BE.unflatten(1, (spec.kv_heads, -1))
        longest = int(before.max()) + 1
        at = torch.arange(longest, device=qk_BE.device)
        seen = at <= before[:, None]
        if spec.window:
            seen &= at > before[:, None] - spec.window
        k = keys[slots, ..., :longest].transpose(2, 3)
        q = qk_BE[:, : spec.q_size].unflatten(1, (spec.heads, 1, -1))
        return ops.dense_attention(q, k, values[slots, :, :longest], spec, seen[:, None]).flatten(1)
