"""The KV cache of generation: a slot per sequence, reused as sequences end and begin.

T new tokens, packed; S sequences; H heads of D, Hkv of them of keys and values.
"""

import torch
from torch import Tensor

from afina.engine.ops import AttentionSpec, Continued, Ops, Past, Rotation, Segments


class Cache:
    """Keys and values (slots, Hkv, room, D) in each layer, for `slots` sequences of up to `room` tokens.

    `cut` and `copy` make slots ready for new sequences. Before a forward pass, `begin` says which slot each of its
    segments continues. Raises `IndexError` where a slot is none, is named twice, or has no room for its segment.
    """

    def __init__(
        self, specs: tuple[AttentionSpec, ...], slots: int, room: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.used = False
        self.slots, self.room = slots, room
        self._lengths = torch.zeros(slots, dtype=torch.int32)
        shapes = [(slots, spec.kv_heads, room, spec.head_dim) for spec in specs]
        self._layers = [
            (torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))
            for shape in shapes
        ]

    def cut(self, slot: int, length: int) -> None:
        """Leaves the first tokens of a slot."""
        self._lengths[slot] = length

    def copy(self, slot: int, to: list[int], first: int | None = None, last: int | None = None) -> None:
        """Makes other slots the same as this one in its `first` tokens (None: in all). Of these they have all but the
        `last` ones already (None: they have none)."""
        n = int(self._lengths[slot]) if first is None else first
        since = 0 if last is None else n - last
        self._lengths[to] = n
        for tensor in (tensor for layer in self._layers for tensor in layer) if n > since else ():
            for other in to:
                tensor[other, :, since:n] = tensor[slot, :, since:n]

    def resize(self, order: list[int], slots: int, room: int) -> None:
        """Makes space for so many slots, and tokens in each; no less than they hold. The first slots are those of
        `order`, with copies of what they hold; the others are empty."""
        lengths = self._lengths[order].tolist()
        self._lengths = torch.tensor(lengths + [0] * (slots - len(order)), dtype=torch.int32)

        def resized(old: Tensor) -> Tensor:
            new = old.new_zeros(slots, old.shape[1], room, old.shape[3])
            for slot, (before, n) in enumerate(zip(order, lengths, strict=True)):
                new[slot, :, :n] = old[before, :, :n]
            return new

        for i, (keys, values) in enumerate(self._layers):
            self._layers[i] = resized(keys), resized(values)
        self.slots, self.room = slots, room

    @property
    def bytes(self) -> int:
        """Of all slots, with the room that they have."""
        return sum(tensor.nbytes for layer in self._layers for tensor in layer)

    def longest(self, slots: list[int], segments: Segments) -> int:
        """Tokens of the longest of the sequences in `slots` once the segments have joined them."""
        return int((self._lengths[slots] + segments.lengths_S).max())

    def begin(self, slots: list[int], segments: Segments) -> None:
        if len(segments.lengths) != len(slots) or len(set(slots)) != len(slots):
            raise IndexError(f"{len(segments.lengths)} segments continue the slots {slots}")
        if slots and not 0 <= min(slots) <= max(slots) < self.slots:
            raise IndexError(f"the cache has {self.slots} slots, {slots} are asked for")
        if slots and (longest := self.longest(slots, segments)) > self.room:
            raise IndexError(f"a sequence of {longest} tokens, the cache has room for {self.room}")
        self._of = Continued(torch.tensor(slots, dtype=torch.int32), self._lengths[slots])

    @property
    def begun(self) -> tuple[Tensor, Tensor]:
        """Of the segments that `begin` named: their slots, and the tokens that are there."""
        return self._of.slots_S, self._of.before_S

    def end(self, segments: Segments) -> None:
        self.used = True
        self._lengths[self._of.slots_S.long()] = self._of.before_S + segments.lengths_S

    def positions(self, segments: Segments) -> Tensor:
        return segments.positions_T + self._of.before_S[segments.rows_T]

    def lengths_T(self, segments: Segments) -> Tensor:
        """The length, new tokens included, of the sequence that each token belongs to."""
        return (self._of.before_S + segments.lengths_S)[segments.rows_T]

    def attend(
        self, layer: int, qkv_TE: Tensor, spec: AttentionSpec, rotation: Rotation | None, segments: Segments, ops: Ops
    ) -> Tensor:
        """Attention of the new tokens, (T, H·D), to their past and to themselves; their keys and values are added to
        the cache."""
        qk_TE = ops.rotate(qkv_TE, spec, rotation)
        past = Past(*self._layers[layer], self._of)
        return ops.attend_cached(qk_TE, qkv_TE[:, spec.qk_size :], spec, past, segments)
