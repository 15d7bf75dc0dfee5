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

from afina.engine import ops
from afina.engine.blocks import BlockLinear, Blocks
from afina.engine.decoder import Decoder
from afina.engine.grouping import grouped
from afina.engine.kv_cache import Cache
from afina.engine.ops import Segments
from afina.models.model import IGNORE_INDEX, ActiveSequences, Packed, token_losses

EAGER_TOKENS = (
    384  # tokens; beyond, the square of the length weighs more than the slow backward pass of fused attention
)
PREFILL_TOKENS = 4096  # prompt tokens of one forward pass


class DecoderModel:
    """Afina's own decoder: a `Writer`."""

    heads: tuple[str, ...] = ()

    def __init__(self, module: Decoder) -> None:
        self.module: Decoder = module

    def summed_loss(self, packed: Packed) -> Tensor:
        hidden_NC = self._hidden(packed)
        labels_N = packed.labels_T[packed.labelled_N]
        if (head_VC := self._plain_head()) is not None:
            return ops.summed_cross_entropy(self.module.kernels_for(hidden_NC), hidden_NC, head_VC, labels_N)
        total = hidden_NC.new_zeros((), dtype=torch.float32)
        for at in range(0, len(labels_N), ops.CHUNK):  # the backward pass recomputes a chunk's logits
            part = slice(at, at + ops.CHUNK)
            total = total + checkpoint(self._chunk_loss, hidden_NC[part], labels_N[part], use_reentrant=False)
        return total

    def _chunk_loss(self, hidden_NC: Tensor, labels_N: Tensor) -> Tensor:
        return F.cross_entropy(self.module.logits(hidden_NC).float(), labels_N, reduction="sum")

    def _plain_head(self) -> Tensor | Blocks | None:
        """The weights of the output head, where logits are nothing but their product."""
        head = self.module.get_output_embeddings()
        if type(head) not in (nn.Linear, BlockLinear) or head.bias is not None or self.module.arch.logit_cap:
            return None
        weights: Tensor | Blocks = head.blocks if isinstance(head, BlockLinear) else head.weight
        return weights

    def label_losses(self, packed: Packed) -> Tensor:
        hidden_NC, labels_N = self._hidden(packed), packed.labels_T[packed.labelled_N]
        if (head_VC := self._plain_head()) is not None and not torch.is_grad_enabled():
            return ops.cross_entropies(self.module.kernels_for(hidden_NC), hidden_NC, head_VC, labels_N)
        parts = zip(hidden_NC.split(ops.CHUNK), labels_N.split(ops.CHUNK), strict=True)
        return torch.cat([token_losses(self.module.logits(hidden), labels) for hidden, labels in parts])

    def label_logits(self, packed: Packed) -> Tensor:
        return self.module.logits(self._hidden(packed))

    def _hidden(self, packed: Packed) -> Tensor:
        ids_T, segments = packed.ids_T, packed.segments
        missing = -len(ids_T) % ops.ROUND
        if missing and self.module.training:  # outside training, eva looks at the rows' own only
            ids_T = F.pad(ids_T, (0, missing))
            segments = Segments((*segments.bounds, len(ids_T)))
        x_TC, added_TC = self.module(ids_T, segments)
        at = packed.labelled_N
        return self.module.normed(x_TC.index_select(0, at), added_TC.index_select(0, at))

    def start(self, slots: int, room: int, prefix: Sequence[int] = ()) -> ActiveSequences:
        return _DecoderSequences(self.module, slots, room, list(prefix))

    def checkpoint_activations(self) -> None:
        self.module.checkpointing = True


class _DecoderSequences:
    can_add = True

    def __init__(self, module: Decoder, slots: int, room: int, prefix: list[int]) -> None:
        if any(rope.original for rope in module.arch.ropes):
            prefix = []  # angles depend on the length of the prompt, so that no part of it can be read alone
        self._module = module
        self._device = next(module.parameters()).device
        self._cache = Cache(module.arch.specs, slots + bool(prefix), room, module.dtype, self._device)
        self._slots: list[int] = []  # of each sequence
        self._free = list(range(slots))
        self._one_each = Segments((0,))
        self._prefix = prefix
        self._source = slots  # the slot that holds the prefix, where there is one
        if prefix:
            self._forward(prefix, Segments((0, len(prefix))), [self._source])

    def prefill(self, prompts: Sequence[list[int]]) -> Tensor:
        return torch.cat([self._read(group) for group in grouped(prompts, len, PREFILL_TOKENS)])

    def _read(self, prompts: Sequence[list[int]]) -> Tensor:
        if len(prompts) > len(self._free):
            self._grow(len(self._slots) + len(prompts))
        slots = [self._free.pop(0) for _ in prompts]
        self._slots += slots
        n = len(self._prefix)
        begin = [n if n and len(prompt) > n and prompt[:n] == self._prefix else 0 for prompt in prompts]
        if all(begin):
            self._cache.empty(slots, self._source)
        else:
            self._cache.empty(slots)
            if any(begin):
                self._cache.empty([slot for slot, n in zip(slots, begin, strict=True) if n], self._source)
        own = [prompt[n:] for prompt, n in zip(prompts, begin, strict=True)]
        bounds = tuple(accumulate(map(len, own), initial=0))
        return self._forward([token for prompt in own for token in prompt], Segments(bounds), slots)

    def _grow(self, sequences: int) -> None:
        """Slots for so many sequences, up to the next power of two, so that each is copied a few times only."""
        before = self._cache.slots
        more = (1 << (sequences - 1).bit_length()) - len(self._slots) - len(self._free)
        self._cache.grow(before + more, self._cache.room)
        self._free += range(before, self._cache.slots)

    def decode(self, ids_B: Tensor) -> Tensor:
        if len(self._one_each.lengths) != len(ids_B):
            self._one_each = Segments(tuple(range(len(ids_B) + 1)))
        return self._forward(ids_B, self._one_each, self._slots)

    def _forward(self, ids_T: Tensor | list[int], segments: Segments, slots: list[int]) -> Tensor:
        """The logits (segments, V) after the last token of each segment."""
        longest = self._cache.longest(slots) + segments.longest
        if longest > self._cache.room:
            self._cache.grow(self._cache.slots, max(longest, 2 * self._cache.room))
        self._cache.begin(slots, segments)
        x_TC, added_TC = self._module(torch.as_tensor(ids_T, device=self._device), segments, self._cache)
        self._cache.end(segments)
        if segments.longest > 1:
            last = (segments.bounds_tensor[1:] - 1).to(self._device)
            x_TC, added_TC = x_TC[last], added_TC[last]
        return self._module.logits(self._module.normed(x_TC, added_TC))

    def retain(self, indices: Sequence[int]) -> None:
        retained = [self._slots[i] for i in indices]
        self._free += sorted(set(self._slots) - set(retained))
        self._slots = retained


class TransformersModel:
    """Any causal model of `transformers`: a `Writer` whose rows are padded, since it takes no packed ones."""

    heads: tuple[str, ...] = ()

    def __init__(self, module: Any) -> None:
        self.module = module
        self._attention = module.config._attn_implementation
        accepted = inspect.signature(module.forward).parameters
        self.selects = "logits_to_keep" in accepted
        self.takes_positions = "position_ids" in accepted

    def summed_loss(self, packed: Packed) -> Tensor:
        labels_N = packed.labels_T[packed.labelled_N]
        return F.cross_entropy(self.label_logits(packed).float(), labels_N, reduction="sum")

    def label_losses(self, packed: Packed) -> Tensor:
        return token_losses(self.label_logits(packed), packed.labels_T[packed.labelled_N])

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

    def start(self, slots: int, room: int, prefix: Sequence[int] = ()) -> ActiveSequences:
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
