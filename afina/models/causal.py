"""Decoder-only models: Afina's own decoder, and any other causal model of `transformers`.

T tokens, packed; N labelled positions; V vocabulary; C channels; B rows or active sequences, padded to T tokens each.
"""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from afina.core.errors import AdapterError
from afina.core.updates import Updates
from afina.engine import ops
from afina.engine.blocks import BlockLinear, Blocks
from afina.engine.decoder import Decoder, drops
from afina.engine.sequences import DecoderSequences, prompt_logits
from afina.models.model import IGNORE_INDEX, ActiveSequences, Packed, token_losses

EAGER_TOKENS = 384  # beyond, the square of the length weighs more than the slow backward pass of fused attention


class DecoderModel:
    """Afina's own decoder: a `Writer`."""

    heads: tuple[str, ...] = ()
    sharing = True

    def __init__(self, module: Decoder) -> None:
        self.module: Decoder = module

    def shares(self, lengths: Sequence[int]) -> list[int] | None:
        """None under dropout, which changes the same token of each row in its own way. Rows longer than some rotation's
        original length have other angles than those that are not."""
        dropout = self.module.training and drops(self.module)
        if dropout or not self.sharing:
            return None
        limits = {rope.original for rope in self.module.arch.ropes if rope.original is not None}
        return [sum(length > limit for limit in limits) for length in lengths]

    def summed_loss(self, packed: Packed) -> Tensor:
        hidden_NC, labels_N, weights_N = self._hidden(packed), packed.labels_N, packed.weights_N
        if (head_VC := self._plain_head()) is not None:
            return ops.summed_cross_entropy(self.module.ops_for(hidden_NC), hidden_NC, head_VC, labels_N, weights_N)
        total = hidden_NC.new_zeros((), dtype=torch.float32)
        rows = ops.chunk_rows(hidden_NC, self.module.arch.vocabulary)
        again = drops(self.module.get_output_embeddings())
        for at in range(0, len(labels_N), rows):  # the backward pass recomputes a chunk's logits
            part = slice(at, at + rows)
            own = None if weights_N is None else weights_N[part]
            total = total + checkpoint(
                self._chunk_loss, hidden_NC[part], labels_N[part], own, use_reentrant=False, preserve_rng_state=again
            )
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
            return ops.cross_entropies(self.module.ops_for(hidden_NC), hidden_NC, head_VC, labels_N)
        rows = ops.chunk_rows(hidden_NC, self.module.arch.vocabulary)
        parts = zip(hidden_NC.split(rows), labels_N.split(rows), strict=True)
        return torch.cat([token_losses(self.module.logits(hidden), labels) for hidden, labels in parts])

    def label_logits(self, packed: Packed) -> Tensor:
        return self.module.logits(self._hidden(packed))

    def _hidden(self, packed: Packed) -> Tensor:
        """The last hidden state (N, C) at each label."""
        ids_T, segments = packed.ids_T, packed.segments
        if not self.module.training:  # eva looks at all tokens of the rows, and at no others
            x_TC, added_TC = (each.index_select(0, packed.at_N) for each in self.module(ids_T, segments))
            return self.module.normed(x_TC, added_TC)
        if missing := ops.padded(len(ids_T)) - len(ids_T):
            ids_T = F.pad(ids_T, (0, missing))
            segments = segments.and_a_root(missing)
        at_M = packed.at_M
        x_MC, added_MC = self.module(ids_T, segments, at_N=F.pad(at_M, (0, ops.padded(len(at_M)) - len(at_M))))
        return self.module.normed(x_MC, added_MC).index_select(0, packed.place_N)

    def start(self, slots: int, room: int, kept: int = 0) -> ActiveSequences:
        return DecoderSequences(self.module, slots, room, kept)

    def prepare(self, updates: Updates) -> int:
        return self.module.prepare(updates).bytes

    def prompt_logits(self, ids: Sequence[int], updates: Updates | None, most: int) -> Iterator[Tensor]:
        return prompt_logits(self.module, ids, updates, most)

    def checkpoint_activations(self) -> None:
        self.module.checkpointing = True


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

    def start(self, slots: int, room: int, kept: int = 0) -> ActiveSequences:
        return _TransformersSequences(self)

    def prepare(self, updates: Updates) -> int:
        raise AdapterError(
            f"a model of the type {self.module.config.model_type} runs through transformers, where all rows of a batch "
            "have the same weights",
            "serve one adapter alone: `afina serve … --merge NAME` merges it into the base",
        )

    def prompt_logits(self, ids: Sequence[int], updates: Updates | None, most: int) -> Iterator[Tensor]:
        if updates is not None:
            self.prepare(updates)
        device = next(self.module.parameters()).device
        yield self.module(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0]

    def checkpoint_activations(self) -> None:
        self.module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


class _TransformersSequences:
    can_add = False  # the cache of transformers has one length for all rows

    def __init__(self, model: TransformersModel) -> None:
        from transformers import DynamicCache

        self._model, self._cache = model, DynamicCache(config=model.module.config)
        self._device = next(model.module.parameters()).device
        self._unread: list[list[int]] = []

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for keys, values, *_ in self._cache for tensor in (keys, values) if tensor is not None)

    def add(self, prompts: Sequence[list[int]], updates: Sequence[Updates | None]) -> list[int]:
        for each in updates:
            if each is not None:
                self._model.prepare(each)
        self._unread += prompts
        return [0] * len(prompts)

    def read(self, most: int) -> tuple[list[int], Tensor]:
        prompts, self._unread = self._unread, []
        if not prompts:
            return [], torch.empty(0)
        width = max(map(len, prompts))
        ids_BT = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=self._device)
        self._mask_BT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self._device)
        return list(range(len(prompts))), self._read(ids_BT)

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

    def record(self, ids: Sequence[int]) -> None:
        """Nothing is kept of sequences that are over."""

    def reserve(self, count: int, room: int) -> None:
        """The cache of transformers grows by itself."""

    def shrink(self) -> int:
        return 0

    def retain(self, indices: Sequence[int]) -> None:
        if self._unread:  # nothing is read: others cannot be added while some are
            self._unread = [self._unread[i] for i in indices]
            return
        rows = torch.tensor(indices, dtype=torch.long, device=self._device)
        self._cache.batch_select_indices(rows)
        self._mask_BT = self._mask_BT[rows]
