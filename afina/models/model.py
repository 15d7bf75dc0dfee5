"""What training, measuring and generating ask of a decoder-only model, and its two implementations.

T tokens of all rows one after another, without padding; N labelled positions; V words; B texts in the making.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from afina.engine import ops
from afina.engine.blocks import BlockLinear
from afina.engine.decoder import Decoder
from afina.engine.kv_cache import Cache
from afina.engine.ops import Segments

IGNORED = -100  # the label of a position from which nothing is learned, as torch's cross-entropy has it
SHORT = 384  # tokens; beyond, the square of the length weighs more than the slow backward pass of fused attention
READ_AT_ONCE = 4096  # prompt tokens read in one pass


@dataclass(frozen=True)
class Packed:
    """Rows one after another. `labels_T` stand at the position that predicts them (shifted), IGNORED where there is none."""

    ids_T: Tensor
    labels_T: Tensor
    segments: Segments

    @property
    def tokens(self) -> int:
        return len(self.ids_T)

    @cached_property
    def labelled_N(self) -> Tensor:
        """The positions that have a label."""
        return (self.labels_T != IGNORED).nonzero().squeeze(1)

    @property
    def labelled(self) -> int:
        return len(self.labelled_N)


@dataclass(frozen=True)
class Answer:
    """What the model wrote: `text` without special tokens, `tokens` new ones, `stopped` by itself or cut at the limit."""

    text: str
    tokens: int
    stopped: bool


Quantize = Literal["nf4", "int8", "keep"]  # how frozen weights are kept in few bits; keep: as the GGUF file has them


class Writing(Protocol):
    """Texts in the making, in an order of their own: each call keeps it, and new ones come last."""

    can_enter: bool

    def enter(self, prompts: list[list[int]]) -> Tensor:
        """Reads prompts that join the others; the logits (new, V) of their first new tokens."""

    def step(self, ids_B: Tensor) -> Tensor:
        """Appends one token to each text; the logits (B, V) of the next."""

    def keep(self, texts: list[int]) -> None:
        """Goes on with the given texts only."""


class CausalModel(Protocol):
    """A frozen decoder-only model. `module` is the network, with transformers' names, where adapters are injected;
    `heads` are the paths of its modules that are new, and have to be trained and saved whole."""

    module: nn.Module
    heads: tuple[str, ...]

    def summed_loss(self, packed: Packed) -> Tensor:
        """The sum over labelled positions of −log p(label), in nats, in fp32."""

    def label_losses(self, packed: Packed) -> Tensor:
        """−log p(label) at each labelled position (N), in nats, in fp32."""

    def label_logits(self, packed: Packed) -> Tensor:
        """Logits (N, V) at the labelled positions, in order."""

    def start(self, texts: int, room: int, prefix: Sequence[int] = ()) -> Writing:
        """Space for up to `texts` texts at one time, of up to `room` tokens each, prompts included.

        All prompts begin with the `prefix`, which need be read once only. The model must not change while texts are in the making.
        """

    def checkpoint_activations(self) -> None:
        """From now on training keeps only each layer's input, and computes the rest again in the backward pass."""


def losses_of(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    return F.cross_entropy(logits_NV.float(), labels_N, reduction="none")


class DecoderModel:
    """Afina's own decoder behind `CausalModel`."""

    heads: tuple[str, ...] = ()

    def __init__(self, module: Decoder) -> None:
        self.module: Decoder = module

    def summed_loss(self, packed: Packed) -> Tensor:
        hidden_NC = self._hidden(packed)
        labels_N = packed.labels_T[packed.labelled_N]
        head = self.module.get_output_embeddings()
        if type(head) in (nn.Linear, BlockLinear) and head.bias is None and not self.module.arch.logit_cap:
            weights = head.blocks if isinstance(head, BlockLinear) else head.weight
            return ops.summed_cross_entropy(self.module.kernels(hidden_NC), hidden_NC, weights, labels_N)
        total = hidden_NC.new_zeros((), dtype=torch.float32)
        for at in range(0, len(labels_N), ops.CHUNK):  # the logits of a chunk are computed again in the backward pass
            part = slice(at, at + ops.CHUNK)
            total = total + checkpoint(self._chunk_loss, hidden_NC[part], labels_N[part], use_reentrant=False)
        return total

    def _chunk_loss(self, hidden_NC: Tensor, labels_N: Tensor) -> Tensor:
        return F.cross_entropy(self.module.logits(hidden_NC).float(), labels_N, reduction="sum")

    def label_losses(self, packed: Packed) -> Tensor:
        parts = zip(
            self._hidden(packed).split(ops.CHUNK), packed.labels_T[packed.labelled_N].split(ops.CHUNK), strict=True
        )
        return torch.cat([losses_of(self.module.logits(hidden), labels) for hidden, labels in parts])

    def label_logits(self, packed: Packed) -> Tensor:
        return self.module.logits(self._hidden(packed))

    def _hidden(self, packed: Packed) -> Tensor:
        ids_T, segments = packed.ids_T, packed.segments
        missing = -len(ids_T) % ops.ROUND
        if missing and self.module.training:  # what looks at activations (eva) outside training sees only the rows' own
            ids_T = F.pad(ids_T, (0, missing))
            segments = Segments((*segments.bounds, len(ids_T)))
        x_TC, added_TC = self.module(ids_T, segments)
        at = packed.labelled_N
        return self.module.normed(x_TC.index_select(0, at), added_TC.index_select(0, at))

    def start(self, texts: int, room: int, prefix: Sequence[int] = ()) -> Writing:
        return _DecoderWriting(self.module, texts, room, list(prefix))

    def checkpoint_activations(self) -> None:
        self.module.checkpointing = True


class _DecoderWriting:
    can_enter = True

    def __init__(self, module: Decoder, texts: int, room: int, prefix: list[int]) -> None:
        if any(
            rope.original for rope in module.arch.ropes
        ):  # these turn by the length of the whole text: no part is read alone
            prefix = []
        self._module = module
        self._device = next(module.parameters()).device
        self._cache = Cache(module.arch.specs, texts + bool(prefix), room, module.dtype, self._device)
        self._slots: list[int] = []
        self._free = list(range(texts))
        self._each = Segments((0,))
        self._prefix = len(prefix)
        self._source = texts if prefix else None  # the slot that holds the prefix
        if prefix:
            self._pass(prefix, Segments((0, len(prefix))), [texts])

    def enter(self, prompts: list[list[int]]) -> Tensor:
        logits, at = [], 0
        while at < len(prompts):
            end, tokens = at + 1, len(prompts[at])
            while end < len(prompts) and tokens + len(prompts[end]) <= READ_AT_ONCE:
                tokens += len(prompts[end])
                end += 1
            logits.append(self._read(prompts[at:end]))
            at = end
        return torch.cat(logits)

    def _read(self, prompts: list[list[int]]) -> Tensor:
        slots = [self._free.pop(0) for _ in prompts]
        self._slots += slots
        self._cache.empty(slots, self._source)
        own = [prompt[self._prefix :] for prompt in prompts]
        bounds = tuple(accumulate(map(len, own), initial=0))
        return self._pass([token for prompt in own for token in prompt], Segments(bounds), slots)

    def step(self, ids_B: Tensor) -> Tensor:
        if len(self._each.lengths) != len(ids_B):
            self._each = Segments(tuple(range(len(ids_B) + 1)))
        return self._pass(ids_B, self._each, self._slots)

    def _pass(self, ids_T: Tensor | list[int], segments: Segments, slots: list[int]) -> Tensor:
        """The logits after the last token of each segment."""
        self._cache.begin(slots)
        x_TC, added_TC = self._module(torch.as_tensor(ids_T, device=self._device), segments, self._cache)
        self._cache.end(segments)
        if segments.longest > 1:
            last = (segments.bounds_tensor[1:] - 1).to(self._device)
            x_TC, added_TC = x_TC[last], added_TC[last]
        return self._module.logits(self._module.normed(x_TC, added_TC))

    def keep(self, texts: list[int]) -> None:
        kept = [self._slots[i] for i in texts]
        self._free += sorted(set(self._slots) - set(kept))
        self._slots = kept


class TransformersModel:
    """Any causal model of transformers behind `CausalModel`: rows are padded, for it knows no packs."""

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
        return losses_of(self.label_logits(packed), packed.labels_T[packed.labelled_N])

    def label_logits(self, packed: Packed) -> Tensor:
        rows = packed.ids_T.split(packed.segments.lengths)
        ids_BT = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        mask_BT = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        labels = packed.labels_T.split(packed.segments.lengths)
        labelled_BT = nn.utils.rnn.pad_sequence(list(labels), batch_first=True, padding_value=IGNORED) != IGNORED
        self._attend(ids_BT)
        columns = labelled_BT.any(0).nonzero().squeeze(1)
        # The columns in which any row has a label: the head is the dearest product, and prompts need none of it.
        extra: dict[str, Any] = {"logits_to_keep": columns} if self.selects else {}
        logits = self.module(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False, **extra).logits
        if not self.selects:
            logits = logits[:, columns]
        return logits[labelled_BT[:, columns]]  # type: ignore[no-any-return]

    def _attend(self, ids_BT: Tensor) -> None:
        """Plain products for short rows on the processor, where the fused attention's backward pass is several times slower."""
        module: Any = self.module
        short = ids_BT.device.type == "cpu" and ids_BT.shape[1] <= SHORT
        wanted = "eager" if short else self._attention
        if module.config._attn_implementation != wanted:
            module.set_attn_implementation(wanted)

    def start(self, texts: int, room: int, prefix: Sequence[int] = ()) -> Writing:
        return _TransformersWriting(self)

    def checkpoint_activations(self) -> None:
        self.module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


class _TransformersWriting:
    can_enter = False  # transformers' cache has one length for all rows

    def __init__(self, model: TransformersModel) -> None:
        from transformers import DynamicCache

        self._model, self._cache = model, DynamicCache(config=model.module.config)
        self._device = next(model.module.parameters()).device

    def enter(self, prompts: list[list[int]]) -> Tensor:
        width = max(map(len, prompts))
        ids_BT = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=self._device)
        self._mask_BT = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self._device)
        return self._read(ids_BT)

    def _read(self, ids_BT: Tensor) -> Tensor:
        extra: dict[str, Any] = {"logits_to_keep": 1} if self._model.selects else {}
        if self._model.takes_positions:
            # Padding on the left takes no position, so a row reads the same alone and in a batch.
            extra["position_ids"] = (self._mask_BT.cumsum(1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
        out = self._model.module(
            input_ids=ids_BT, attention_mask=self._mask_BT, past_key_values=self._cache, use_cache=True, **extra
        )
        return out.logits[:, -1]  # type: ignore[no-any-return]

    def step(self, ids_B: Tensor) -> Tensor:
        self._mask_BT = torch.cat([self._mask_BT, self._mask_BT.new_ones(len(ids_B), 1)], 1)
        return self._read(ids_B[:, None])

    def keep(self, texts: list[int]) -> None:
        rows = torch.tensor(texts, dtype=torch.long, device=self._device)
        self._cache.batch_select_indices(rows)
        self._mask_BT = self._mask_BT[rows]
