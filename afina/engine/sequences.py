"""The sequences that a decoder is generating: whose prompts are read, what adapters they have, where their keys and
values are, and what of these serves others.

T tokens, packed; V vocabulary; B sequences whose prompts are read; S segments of a pass.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from afina.core.device import sent
from afina.core.updates import Updates
from afina.engine import forest
from afina.engine.decoder import Decoder
from afina.engine.kv_cache import Cache
from afina.engine.layers import expect_known
from afina.engine.mixed import PackedUpdates, RowUpdates
from afina.engine.ops import Segments
from afina.engine.tape import Tape

_SPARE = 64  # slots at most for sequences that are over: every new prompt is compared with each


@dataclass(eq=False)
class _Sequence:
    """A prompt, of which the first `done` tokens are read into a slot. `updates` is held because the packed ones live
    as long as it."""

    prompt: list[int]
    updates: Updates | None
    packed: PackedUpdates | None
    slot: int
    done: int

    @property
    def key(self) -> str | None:
        return None if self.updates is None else self.updates.key

    @property
    def is_read(self) -> bool:
        return self.done == len(self.prompt)


@dataclass
class _Held:
    """The tokens whose keys and values a slot has, computed with updates of this key (None: by the base)."""

    key: str | None = None
    tokens: list[int] = field(default_factory=list)


class DecoderSequences:
    """Each sequence has a slot of the cache. What a slot holds stays there until it is needed for another sequence, the
    one that was used longest ago before the others: a prompt that begins as a slot does, active or not, and has updates
    of the same key, begins with a copy. Prompts that are read together read what they begin with once. `kept` bytes
    more are for slots of sequences that are over."""

    can_add = True

    def __init__(self, module: Decoder, slots: int, room: int, kept: int = 0) -> None:
        # Where angles depend on the length of the prompt no part of it can be read alone.
        self._shares = not any(rope.original for rope in module.arch.ropes)
        self._module = module
        self._device = next(module.parameters()).device
        self._wanted, self._kept = slots, kept
        self._cache = Cache(module.arch.specs, slots, room, module.dtype, self._device)
        self._held = [_Held() for _ in range(slots)]
        self._free = list(range(slots))  # those used longest ago first
        self._sequences: list[_Sequence] = []
        self._decoded: list[_Held] = []  # of the sequences that were last decoded, in their order
        self._one_each = Segments((0,))
        self._stepped: Any = None  # what the last step of one token each depended on
        self._tape: Tape | None = None
        if self._spare(room):
            self._resize(slots, room)

    @property
    def bytes(self) -> int:
        return self._cache.bytes

    def _spare(self, room: int) -> int:
        """Slots beside those wanted, of so much room, that `kept` bytes are enough for."""
        return min(_SPARE, int(self._kept * self._cache.slots * self._cache.room // (self._cache.bytes * room)))

    def _resize(self, wanted: int, room: int) -> None:
        """Gives the cache `wanted` slots and those that `kept` is enough for. Sequences keep theirs; of the others, as
        many as there is place for, those used last."""
        active = [sequence.slot for sequence in self._sequences]
        slots = wanted + self._spare(room)
        over = [slot for slot in self._free if self._held[slot].tokens]
        over = over[max(0, len(over) - (slots - len(active))) :]
        order = [*active, *over]
        self._cache.resize(order, slots, room)
        self._held = [self._held[slot] for slot in order] + [_Held() for _ in range(slots - len(order))]
        for slot, sequence in enumerate(self._sequences):
            sequence.slot = slot
        self._free = [*range(len(order), slots), *range(len(active), len(order))]
        self._wanted, self._stepped, self._tape = wanted, None, None  # a tape holds the memory that it was recorded in

    def add(self, prompts: Sequence[list[int]], updates: Sequence[Updates | None]) -> list[int]:
        packed = [None if each is None else self._module.prepare(each) for each in updates]
        count = len(self._sequences) + len(prompts)
        if count > self._wanted:  # up to the next power of two, so that each slot is copied a few times only
            self._resize(1 << (count - 1).bit_length(), self._cache.room)
        found = []
        for prompt, own, ready in zip(prompts, updates, packed, strict=True):
            sequence = _Sequence(list(prompt), own, ready, 0, 0)
            self._take(sequence)
            self._sequences.append(sequence)
            found.append(sequence.done)
        return found

    def _take(self, sequence: _Sequence) -> None:
        """Gives the sequence a slot, with what another holds of its prompt: that one itself where it is over and less
        is lost than in the slot that was used longest ago."""
        source, n = self._best(sequence)
        over = n > 0 and source in self._free
        if over:
            self._free.remove(source)
            self._free.append(source)  # used last
        slot, lost = self._free[0], len(self._held[source].tokens) - n
        if over and (lost < forest.SHORTEST or lost <= len(self._held[slot].tokens)):
            slot = source
        if n and slot != source:
            self._cache.copy(source, [slot], first=n)
        self._cache.cut(slot, n)
        self._free.remove(slot)
        self._held[slot] = _Held(sequence.key, sequence.prompt[:n])
        sequence.slot, sequence.done = slot, n

    def _best(self, sequence: _Sequence) -> tuple[int, int]:
        """The slot that begins most as the prompt does, and up to where; a token of the prompt is left to be read."""
        best, prompt, key = (0, 0), sequence.prompt, sequence.key
        for slot, held in enumerate(self._held if self._shares else ()):
            most = min(len(held.tokens), len(prompt) - 1)
            if held.key == key and most > best[1] and held.tokens[: best[1] + 1] == prompt[: best[1] + 1]:
                best = slot, forest.alike(held.tokens[:most], prompt[:most])
        return best if best[1] >= forest.SHORTEST else (0, 0)

    def read(self, most: int) -> tuple[list[int], Tensor]:
        parts = list(self._parts(most))
        sequences = [sequence for sequence, _ in parts]
        planted = forest.plant([part for _, part in parts], self._kinds(sequences) if self._shares else None)
        wanted = {sequence for sequence, part in parts if sequence.done + len(part) == len(sequence.prompt)}
        found = self._read(planted, sequences, wanted)
        for sequence, part in parts:
            sequence.done += len(part)
            self._held[sequence.slot].tokens += part
        whole = [i for i, sequence in enumerate(self._sequences) if sequence in wanted]
        logits = [found[self._sequences[i]] for i in whole]
        return whole, torch.stack(logits) if logits else torch.empty(0, self._module.arch.vocabulary)

    def _parts(self, most: int) -> Iterator[tuple[_Sequence, list[int]]]:
        """What is read next of which prompts, `most` tokens in all, and what others share with these: of the oldest,
        but half is for shorter ones, as far as they need it. So a short prompt does not wait until a long one is read,
        and the oldest always goes on."""
        unread = [sequence for sequence in self._sequences if not sequence.is_read]
        rests = {sequence: sequence.prompt[sequence.done :] for sequence in unread}
        if not self._shares:
            for sequence, rest in rests.items():
                if sequence is not unread[0] and len(rest) > most:
                    return
                most = max(0, most - len(rest))
                yield sequence, rest
            return
        kinds = dict(zip(unread, self._kinds(unread), strict=True))

        def alike(one: _Sequence, other: _Sequence) -> int:
            same = forest.alike(rests[one], rests[other]) if kinds[one] == kinds[other] else 0
            return same if same >= forest.SHORTEST else 0

        others = sorted(unread[1:], key=lambda each: len(rests[each]))
        shorter = [len(rests[s]) for s in others if len(rests[s]) < len(rests[unread[0]]) and not alike(unread[0], s)]
        of_others = min(most // 2, sum(shorter))
        most -= of_others
        read: list[tuple[_Sequence, int]] = []
        for sequence in [*unread[:1], *others]:
            rest, same = rests[sequence], [(alike(other, sequence), n) for other, n in read]
            shared, goes_on = max(((min(n, length), length > n) for length, n in same), default=(0, False))
            end = shared if goes_on else min(len(rest), shared + most)  # the other reads it for both, later
            if read and end < len(rest) and end - shared < forest.SHORTEST:
                end = shared  # so few more are not worth a segment
            if end > shared:
                read.append((sequence, end))
            if end:
                most = max(0, most - (end - shared))
                yield sequence, rest[:end]
            if sequence is unread[0]:
                most += of_others

    def _kinds(self, sequences: list[_Sequence]) -> list[int]:
        """Prompts share what follows where what was read of them, and with which updates, is the same."""
        numbers: dict[Any, int] = {}
        return [numbers.setdefault((s.key, tuple(s.prompt[: s.done])), len(numbers)) for s in sequences]

    def _read(
        self, planted: forest.Forest, sequences: list[_Sequence], wanted: set[_Sequence]
    ) -> dict[_Sequence, Tensor]:
        """Reads the segments into the slots of their rows, parents before children; the logits (V) after the rows that
        are wanted. A segment is read in the slot of its first row, from which the others get it."""
        rows_of: dict[int, list[_Sequence]] = {}
        wanted_at: dict[int, list[_Sequence]] = {}
        for sequence, path in zip(sequences, planted.rows, strict=True):
            for s in path:
                rows_of.setdefault(s, []).append(sequence)
            if sequence in wanted:
                wanted_at.setdefault(path[-1], []).append(sequence)
        bounds, depths = planted.segments.bounds, planted.segments.depths
        found: dict[_Sequence, Tensor] = {}
        for depth in range(max(depths, default=-1) + 1):
            level = [s for s, d in enumerate(depths) if d == depth]
            ids = [token for s in level for token in planted.ids[bounds[s] : bounds[s + 1]]]
            pack = Segments(tuple(accumulate((bounds[s + 1] - bounds[s] for s in level), initial=0)))
            last = [i for i, s in enumerate(level) if s in wanted_at]
            logits = self._pass(ids, pack, [rows_of[s][0] for s in level], last)
            for i, logits_V in zip(last, logits, strict=True):
                found |= dict.fromkeys(wanted_at[level[i]], logits_V)
            for s in level:
                first, *others = rows_of[s]
                if others:
                    self._cache.copy(first.slot, [row.slot for row in others], last=bounds[s + 1] - bounds[s])
        return found

    def _pass(self, ids: list[int], segments: Segments, sequences: list[_Sequence], last: list[int]) -> Tensor:
        """Computes the segments, each of one of the sequences; the logits (len(last), V) after the segments `last`."""
        expect_known(ids, self._module.arch.vocabulary)
        updates = self._begin(segments, sequences)
        last_S, ids_T = segments.bounds_tensor[1:] - 1, sent(torch.tensor(ids), self._device)
        x_SC, added_SC = self._module(ids_T, segments, self._cache, sent(last_S, self._device), updates)
        self._cache.end(segments)
        if not last:
            return torch.empty(0, self._module.arch.vocabulary)
        own_N = updates and updates.at(last_S[last])
        at_N = sent(torch.tensor(last), self._device)
        return self._module.logits(self._module.normed(x_SC[at_N], added_SC[at_N]), own_N)

    def decode(self, ids_B: Tensor) -> Tensor:
        sequences = [sequence for sequence in self._sequences if sequence.is_read]
        if len(self._one_each.lengths) != len(ids_B):
            self._one_each = Segments(tuple(range(len(ids_B) + 1)))
        self._decoded = [self._held[sequence.slot] for sequence in sequences]
        updates = self._begin(self._one_each, sequences)
        scores_BV = self._step(ids_B.to(self._device), self._one_each, updates)
        self._cache.end(self._one_each)
        return self._module.capped(scores_BV)

    def record(self, ids: Sequence[int]) -> None:
        for held, token in zip(self._decoded, ids, strict=True):
            held.tokens.append(token)

    def _begin(self, segments: Segments, sequences: list[_Sequence]) -> RowUpdates | None:
        """Makes the cache ready for a pass of these segments, each of one of the sequences; the tokens' updates."""
        longest = self._cache.longest([sequence.slot for sequence in sequences], segments)
        if longest > self._cache.room:
            self._resize(self._wanted, max(longest, 2 * self._cache.room))
        self._cache.begin([sequence.slot for sequence in sequences], segments)  # other slots, perhaps
        return RowUpdates.of([sequence.packed for sequence in sequences], segments.lengths_S)

    def _step(self, ids_B: Tensor, segments: Segments, updates: RowUpdates | None) -> Tensor:
        """The logits (B, V), before their cap, after one more token of each sequence. The second such step of as many
        sequences, in the same memory, is recorded, and those after it are the calls of its kernels, whatever adapters
        the sequences have."""
        module, cache = self._module, self._cache
        x_BC, state = module.begin(ids_B, segments, cache, updates)
        tables = {r.cosines.data_ptr(): r.rows_T for r in state.rotations.values()}
        adapters = () if updates is None else (updates.addresses_T,)
        inputs = (x_BC, *cache.begun, *tables.values(), *adapters)
        key = (len(ids_B), cache.slots, cache.room, *tables, torch.get_num_threads(), len(adapters))

        def step() -> Tensor:
            return module.scores(module.normed(*module.through(x_BC, state)), updates)

        kernels = state.ops.kernels
        if kernels is None or key != self._stepped:
            self._stepped, self._tape = key, None
            return step()
        if self._tape is None:
            tape = Tape(inputs)
            scores_BV = tape.record(kernels, step).clone()
            self._tape = tape
            return scores_BV
        return step() if self._tape.spoiled else self._tape.repeat(*inputs).clone()

    def reserve(self, count: int, room: int) -> None:
        if count > self._wanted or room > self._cache.room:
            self._resize(max(count, self._wanted), max(room, self._cache.room))

    def shrink(self) -> int:
        of_a_token = self._cache.bytes // (self._cache.slots * self._cache.room)
        room = min(self._cache.room, self._kept // of_a_token)
        if room and (1, room) != (self._wanted, self._cache.room):
            self._held = [each if len(each.tokens) <= room else _Held() for each in self._held]
            self._resize(1, room)
        return room

    def retain(self, indices: Sequence[int]) -> None:
        retained = [self._sequences[i] for i in indices]
        kept = set(map(id, retained))
        self._free += [sequence.slot for sequence in self._sequences if id(sequence) not in kept]
        self._sequences = retained


def prompt_logits(module: Decoder, ids: Sequence[int], updates: Updates | None, most: int) -> Iterator[Tensor]:
    """The logits (n, V) after each token of one prompt, in parts of `most` tokens."""
    expect_known(ids, module.arch.vocabulary)
    packed = None if updates is None else module.prepare(updates)
    device = next(module.parameters()).device
    cache = Cache(module.arch.specs, 1, len(ids), module.dtype, device)
    if any(rope.original for rope in module.arch.ropes):
        most = len(ids)  # angles depend on the length of the prompt
    for at in range(0, len(ids), most):
        part = torch.tensor(ids[at : at + most], device=device)
        segments = Segments((0, len(part)))
        cache.begin([0], segments)
        rows = RowUpdates.of([packed], segments.lengths_S)
        x_TC, added_TC = module(part, segments, cache, None, rows)
        cache.end(segments)
        yield module.logits(module.normed(x_TC, added_TC), rows)
