"""Decoder-only models: Afina's own decoder, and any other causal model of `transformers`.

T tokens, packed; N labelled positions; V vocabulary; C channels; B rows or active sequences, padded to T tokens each.
"""

import inspect
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from afina.engine import forest, ops
from afina.engine.blocks import BlockLinear, Blocks
from afina.engine.decoder import Decoder
from afina.engine.kv_cache import Cache
from afina.engine.ops import Segments
from afina.engine.tape import Tape
from afina.models.model import IGNORE_INDEX, ActiveSequences, Packed, token_losses

EAGER_TOKENS = (
    384  # tokens; beyond, the square of the length weighs more than the slow backward pass of fused attention
)
PREFILL_TOKENS = 4096  # prompt tokens of one forward pass


class DecoderModel:
    """Afina's own decoder: a `Writer`."""

    heads: tuple[str, ...] = ()
    sharing = True

    def __init__(self, module: Decoder) -> None:
        self.module: Decoder = module

    def shares(self, lengths: Sequence[int]) -> list[int] | None:
        """None under dropout, which changes the same token of each row in its own way. Rows longer than some rotation's
        original length have other angles than those that are not."""
        dropout = self.module.training and any(isinstance(m, nn.Dropout) and m.p > 0 for m in self.module.modules())
        if dropout or not self.sharing:
            return None
        limits = {rope.original for rope in self.module.arch.ropes if rope.original is not None}
        return [sum(length > limit for limit in limits) for length in lengths]

    def summed_loss(self, packed: Packed) -> Tensor:
        hidden_NC, labels_N, weights_N = self._hidden(packed), packed.labels_N, packed.weights_N
        if (head_VC := self._plain_head()) is not None:
            fused = self.module.kernels_for(hidden_NC)
            return ops.summed_cross_entropy(fused, hidden_NC, head_VC, labels_N, weights_N)
        total = hidden_NC.new_zeros((), dtype=torch.float32)
        for at in range(0, len(labels_N), ops.CHUNK):  # the backward pass recomputes a chunk's logits
            part = slice(at, at + ops.CHUNK)
            own = None if weights_N is None else weights_N[part]
            total = total + checkpoint(self._chunk_loss, hidden_NC[part], labels_N[part], own, use_reentrant=False)
        return total

    def _chunk_loss(self, hidden_NC: Tensor, labels_N: Tensor, weights_N: Tensor | None) -> Tensor:
        losses_N = token_losses(self.module.logits(hidden_NC), labels_N)
        return losses_N.sum() if weights_N is None else losses_N @ weights_N

    def _plain_head(self) -> Tensor | Blocks | None:
        """The weights of the output head, where logits are nothing but their product."""
        head = self.module.get_output_embeddings()
        if type(head) not in (nn.Linear, BlockLinear) or head.bias is not None or self.module.arch.logit_cap:
            return None
        weights: Tensor | Blocks = head.blocks if isinstance(head, BlockLinear) else head.weight
        return weights

    def label_losses(self, packed: Packed) -> Tensor:
        hidden_NC, labels_N = self._hidden(packed), packed.labels_N
        if (head_VC := self._plain_head()) is not None and not torch.is_grad_enabled():
            return ops.cross_entropies(self.module.kernels_for(hidden_NC), hidden_NC, head_VC, labels_N)
        parts = zip(hidden_NC.split(ops.CHUNK), labels_N.split(ops.CHUNK), strict=True)
        return torch.cat([token_losses(self.module.logits(hidden), labels) for hidden, labels in parts])

    def label_logits(self, packed: Packed) -> Tensor:
        return self.module.logits(self._hidden(packed))

    def _hidden(self, packed: Packed) -> Tensor:
        """The last hidden state (N, C) at each label."""
        ids_T, segments = packed.ids_T, packed.segments
        if not self.module.training:  # eva looks at all tokens of the rows, and at no others
            x_TC, added_TC = (each.index_select(0, packed.at_N) for each in self.module(ids_T, segments))
            return self.module.normed(x_TC, added_TC)
        if missing := -len(ids_T) % ops.ROUND:
            ids_T = F.pad(ids_T, (0, missing))
            segments = segments.and_a_root(missing)
        at_M, place_N = packed.at_N.unique(return_inverse=True)
        x_MC, added_MC = self.module(ids_T, segments, at_N=F.pad(at_M, (0, -len(at_M) % ops.ROUND)))
        return self.module.normed(x_MC, added_MC).index_select(0, place_N)

    def start(self, slots: int, room: int) -> ActiveSequences:
        return _DecoderSequences(self.module, slots, room)

    def checkpoint_activations(self) -> None:
        self.module.checkpointing = True


class _DecoderSequences:
    """Each sequence has a slot of the cache. What a slot holds stays there until it is needed for another sequence, the
    one that was given up first before the others: a prompt that begins as a slot does, active or not, begins with a
    copy, and prompts that enter together read what they begin with once."""

    can_add = True

    def __init__(self, module: Decoder, slots: int, room: int) -> None:
        # Where angles depend on the length of the prompt no part of it can be read alone.
        self._shares = not any(rope.original for rope in module.arch.ropes)
        self._module = module
        self._device = next(module.parameters()).device
        self._cache = Cache(module.arch.specs, slots, room, module.dtype, self._device)
        self._held: list[list[int]] = [[] for _ in range(slots)]  # the tokens whose keys and values each slot has
        self._slots: list[int] = []  # of each sequence
        self._free = list(range(slots))
        self._one_each = Segments((0,))
        self._stepped: Any = None  # what the last step of one token each depended on
        self._tape: Tape | None = None

    def prefill(self, prompts: Sequence[list[int]]) -> Tensor:
        if len(prompts) > len(self._free):
            self._grow(len(self._slots) + len(prompts))
        slots, begun = self._take(prompts)
        kinds = self._kinds(prompts, begun)
        rest = [prompt[n:] for prompt, n in zip(prompts, begun, strict=True)]
        logits: list[Tensor] = [torch.empty(0)] * len(prompts)
        for group, _ in forest.groups(rest, kinds, PREFILL_TOKENS):
            planted = forest.plant([rest[i] for i in group], kinds and [kinds[i] for i in group])
            for i, logits_V in zip(group, self._read(planted, [slots[i] for i in group]), strict=True):
                logits[i] = logits_V
        self._slots += slots
        return torch.stack(logits)

    def _take(self, prompts: Sequence[list[int]]) -> tuple[list[int], list[int]]:
        """A slot for each prompt, and how many of its tokens are there already."""
        found = [self._best(prompt) for prompt in prompts]
        taken: dict[int, int] = {}  # the prompt that goes on in the slot of another sequence, which is over
        for i, (slot, n) in enumerate(found):
            if n and slot in self._free:
                taken.setdefault(slot, i)
        others = (slot for slot in [*self._free] if slot not in taken)
        own = {i: slot for slot, i in taken.items()}
        slots = [own[i] if i in own else next(others) for i in range(len(prompts))]
        begun = [n for _, n in found]
        for slot, (source, n) in zip(slots, found, strict=True):
            if slot != source:
                self._cache.copy(source, [slot], first=n)
        for slot, prompt, n in zip(slots, prompts, begun, strict=True):
            self._cache.cut(slot, n)
            self._held[slot] = list(prompt)
            self._free.remove(slot)
        return slots, begun

    def _best(self, prompt: list[int]) -> tuple[int, int]:
        """The slot that begins most as the prompt does, and up to where; a token of the prompt is left to be read."""
        best = 0, 0
        for slot, held in enumerate(self._held if self._shares else ()):
            most = min(len(held), len(prompt) - 1)
            if most > best[1] and held[: best[1] + 1] == prompt[: best[1] + 1]:
                best = slot, forest.alike(held[:most], prompt[:most])
        return best if best[1] >= forest.SHORTEST else (0, 0)

    def _kinds(self, prompts: Sequence[list[int]], begun: list[int]) -> list[int] | None:
        """Prompts share what follows where what was there already is the same."""
        if not self._shares:
            return None
        numbers: dict[tuple[int, ...], int] = {}
        return [numbers.setdefault(tuple(p[:n]), len(numbers)) for p, n in zip(prompts, begun, strict=True)]

    def _read(self, planted: forest.Forest, slots: list[int]) -> list[Tensor]:
        """Reads the segments into the slots of their rows, parents before children; the logits (V) after each row. A
        segment is read in the slot of its first row, from which the others get it."""
        rows_of: dict[int, list[int]] = {}
        for row, path in enumerate(planted.rows):
            for s in path:
                rows_of.setdefault(s, []).append(row)
        bounds, depths = planted.segments.bounds, planted.segments.depths
        found: list[Tensor] = [torch.empty(0)] * len(slots)
        for depth in range(max(depths) + 1):
            level = [s for s, d in enumerate(depths) if d == depth]
            ids = [token for s in level for token in planted.ids[bounds[s] : bounds[s + 1]]]
            pack = Segments(tuple(accumulate((bounds[s + 1] - bounds[s] for s in level), initial=0)))
            logits_LV = self._forward(ids, pack, [slots[rows_of[s][0]] for s in level])
            for s, logits_V in zip(level, logits_LV, strict=True):
                first, *others = rows_of[s]
                for row in (first, *others):
                    if planted.rows[row][-1] == s:
                        found[row] = logits_V
                if others:
                    length = bounds[s + 1] - bounds[s]
                    self._cache.copy(slots[first], [slots[row] for row in others], last=length)
        return found

    def _grow(self, sequences: int) -> None:
        """Slots for so many sequences, up to the next power of two, so that each is copied a few times only."""
        before = self._cache.slots
        more = (1 << (sequences - 1).bit_length()) - len(self._slots) - len(self._free)
        self._cache.grow(before + more, self._cache.room)
        self._held += [[] for _ in range(more)]
        self._free += range(before, self._cache.slots)

    def decode(self, ids_B: Tensor) -> Tensor:
        if len(self._one_each.lengths) != len(ids_B):
            self._one_each = Segments(tuple(range(len(ids_B) + 1)))
        for slot, token in zip(self._slots, ids_B.tolist(), strict=True):
            self._held[slot].append(token)
        return self._forward(ids_B, self._one_each, self._slots)

    def _forward(self, ids_T: Tensor | list[int], segments: Segments, slots: list[int]) -> Tensor:
        """The logits (segments, V) after the last token of each segment."""
        longest = self._cache.longest(slots) + segments.longest
        if longest > self._cache.room:
            self._cache.grow(self._cache.slots, max(longest, 2 * self._cache.room))
        self._cache.begin(slots, segments)
        ids_T = torch.as_tensor(ids_T, device=self._device)
        if segments.longest > 1:
            last_S = (segments.bounds_tensor[1:] - 1).to(self._device)
            x_SC, added_SC = self._module(ids_T, segments, self._cache, last_S)
            scores_SV = self._module.scores(self._module.normed(x_SC, added_SC))
        else:
            scores_SV = self._step(ids_T, segments)
        self._cache.end(segments)
        return self._module.capped(scores_SV)

    def _step(self, ids_B: Tensor, segments: Segments) -> Tensor:
        """The logits (B, V), before their cap, after one more token of each sequence. The second such step of as many
        sequences, in the same memory, is recorded, and those after it are the calls of its kernels."""
        module, cache = self._module, self._cache
        x_BC, state = module.begin(ids_B, segments, cache)
        tables = {r.cosines.data_ptr(): r.rows_T for r in state.rotations.values()}
        inputs = (x_BC, *cache.begun, *tables.values())
        key = (len(ids_B), cache.slots, cache.room, *tables, torch.get_num_threads())

        def step() -> Tensor:
            return module.scores(module.normed(*module.through(x_BC, state)))

        if state.fused is None or key != self._stepped:
            self._stepped, self._tape = key, None
            return step()
        if self._tape is None:
            tape = Tape(inputs)
            scores_BV = tape.record(state.fused, step).clone()
            self._tape = tape
            return scores_BV
        return step() if self._tape.spoiled else self._tape.repeat(*inputs).clone()

    def retain(self, indices: Sequence[int]) -> None:
        retained = [self._slots[i] for i in indices]
        self._free += sorted(set(self._slots) - set(retained))
        self._slots = retained


class TransformersModel:
    """Any causal model of `transformers`: a `Writer` whose rows are padded, since it takes no packed ones."""

    heads: tuple[str, ...] = ()
    sharing = False

    def __init__(self, module: Any) -> None:
        self.module = module
        self._attention = module.config._attn_implementation
        accepted = inspect.signature(module.forward).parameters
        self.selects = "logits_to_keep" in accepted
        self.takes_positions = "position_ids" in accepted

    def shares(self, lengths: Sequence[int]) -> list[int] | None:
        return None

    def summed_loss(self, packed: Packed) -> Tensor:
        return F.cross_entropy(self.label_logits(packed).float(), packed.labels_N, reduction="sum")

    def label_losses(self, packed: Packed) -> Tensor:
        return token_losses(self.label_logits(packed), packed.labels_N)

    def label_logits(self, packed: Packed) -> Tensor:
        rows = packed.ids_T.split(packed.segments.lengths)
        ids_BT = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        mask_BT = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        labels = packed.labels_T.split(packed.segments.lengths)
        labelled_BT = (
            nn.utils.rnn.pad_sequence(list(labels), batch_first=True, padding_value=IGNORE_INDEX) != IGNORE_INDEX
        )
        self._attend(ids_BT)
        columns = labelled_BT.any(0).nonzero().squeeze(1)
        # The columns in which any row has a label: the head is the costliest product, and prompts need none of it.
        extra: dict[str, Any] = {"logits_to_keep": columns} if self.selects else {}
        logits = self.module(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False, **extra).logits
        if not self.selects:
            logits = logits[:, columns]
        return logits[labelled_BT[:, columns]]  # type: ignore[no-any-return]

    def _attend(self, ids_BT: Tensor) -> None:
        """Eager attention for short rows on the CPU, where fused attention's backward pass is several times slower."""
        module: Any = self.module
        short = ids_BT.device.type == "cpu" and ids_BT.shape[1] <= EAGER_TOKENS
        wanted = "eager" if short else self._attention
        if module.config._attn_implementation != wanted:
            module.set_attn_implementation(wanted)

    def start(self, slots: int, room: int) -> ActiveSequences:
        return _TransformersSequences(self)

    def checkpoint_activations(self) -> None:
        self.module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


class _TransformersSequences:
    can_add = False  # the cache of transformers has one length for all rows

    def __init__(self, model: TransformersModel) -> None:
        from transformers import DynamicCache

        self._model, self._cache = model, DynamicCache(config=model.module.config)
        self._device = next(model.module.parameters()).device

    def prefill(self, prompts: Sequence[list[int]]) -> Tensor:
        width = max(map(len, prompts))
        ids_BT = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=self._device)
        self._mask_BT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self._device)
        return self._read(ids_BT)

    def _read(self, ids_BT: Tensor) -> Tensor:
        extra: dict[str, Any] = {"logits_to_keep": 1} if self._model.selects else {}
        if self._model.takes_positions:
            # Padding on the left takes no position, so that a row gives the same alone and in a batch.
            extra["position_ids"] = (self._mask_BT.cumsum(1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
        out = self._model.module(
            input_ids=ids_BT, attention_mask=self._mask_BT, past_key_values=self._cache, use_cache=True, **extra
        )
        return out.logits[:, -1]  # type: ignore[no-any-return]

    def decode(self, ids_B: Tensor) -> Tensor:
        self._mask_BT = torch.cat([self._mask_BT, self._mask_BT.new_ones(len(ids_B), 1)], 1)
        return self._read(ids_B[:, None])

    def retain(self, indices: Sequence[int]) -> None:
        rows = torch.tensor(indices, dtype=torch.long, device=self._device)
        self._cache.batch_select_indices(rows)
        self._mask_BT = self._mask_BT[rows]
