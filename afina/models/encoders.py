"""Models with an encoder: classifiers and encoder-decoders. They run through `transformers`.

Their rows are packed as all are: the label of a classifier's row stands at its first token, the answer of an
encoder-decoder's row follows the text that the encoder reads.

B rows, padded to T tokens each; N labelled positions.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from afina.core.errors import BaseModelError, reading
from afina.core.layers import evaluation_mode
from afina.models.model import IGNORE_INDEX, Answer, Packed, token_losses
from afina.models.sampling import likeliest
from afina.models.tokenizer import Tokenizer

_ROUND = 8  # lengths are padded to a multiple of this, since the matrix library has a set-up cost for each new shape
_PREFILL_TOKENS = 4096  # of a forward pass, padding included


class _EncoderModel(ABC):
    """An `Answerer`. Prompts are read whole, in batches, the longest first."""

    sharing = False

    def __init__(self, module: Any, pad_id: int, heads: tuple[str, ...]) -> None:
        self.module: nn.Module = module
        self.heads = heads
        self._pad = pad_id
        self._longest = int(getattr(module.config, "max_position_embeddings", 0) or 1 << 30)

    @property
    def _network(self) -> Any:
        return self.module

    def shares(self, lengths: Sequence[int]) -> list[int] | None:
        return None

    def summed_loss(self, packed: Packed) -> Tensor:
        return F.cross_entropy(self.label_logits(packed).float(), packed.labels_N, reduction="sum")

    def label_losses(self, packed: Packed) -> Tensor:
        return token_losses(self.label_logits(packed), packed.labels_N)

    @abstractmethod
    def label_logits(self, packed: Packed) -> Tensor:
        """See `Model`."""

    def checkpoint_activations(self) -> None:
        self._network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def _padded(self, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        ids_BT = pad_sequence(list(rows), batch_first=True, padding_value=self._pad)
        mask_BT = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        more = min(-ids_BT.shape[1] % _ROUND, max(0, self._longest - ids_BT.shape[1]))
        return {"input_ids": F.pad(ids_BT, (0, more), value=self._pad), "attention_mask": F.pad(mask_BT, (0, more))}

    @torch.inference_mode()
    def answers(
        self, tokenizer: Tokenizer, prompts: Sequence[list[int]], max_new_tokens: int,
        on_progress: Callable[[int, int], None] | None,
    ) -> list[Answer]:  # fmt: skip
        """See `Answerer`."""
        device = next(self.module.parameters()).device
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        found: dict[int, Answer] = {}
        with evaluation_mode(self.module):
            while len(found) < len(prompts):
                longest = len(prompts[order[len(found)]])
                group = order[len(found) : len(found) + max(1, _PREFILL_TOKENS // longest)]
                rows = [torch.tensor(prompts[i], device=device) for i in group]
                found |= zip(group, self._answer(tokenizer, rows, max_new_tokens), strict=True)
                if on_progress:
                    on_progress(len(found), len(prompts))
        return [found[i] for i in range(len(prompts))]

    @abstractmethod
    def _answer(self, tokenizer: Tokenizer, rows: list[Tensor], max_new_tokens: int) -> list[Answer]:
        """The answers to prompts that fit into a batch."""


class ClassifierModel(_EncoderModel):
    """An encoder with a classification head: one label per row, the number of its class."""

    def label_logits(self, packed: Packed) -> Tensor:
        logits: Tensor = self._network(**self._padded(packed.ids_T.split(packed.segments.lengths))).logits
        return logits

    def _answer(self, tokenizer: Tokenizer, rows: list[Tensor], max_new_tokens: int) -> list[Answer]:
        found = likeliest(self._network(**self._padded(rows)).logits)
        return [Answer(tokenizer.classes[i], 1, True) for i in found]


class Seq2SeqModel(_EncoderModel):
    """An encoder-decoder: the encoder reads the unlabelled tokens of a row, the decoder generates the labelled ones
    after them."""

    def __init__(self, module: Any, pad_id: int, heads: tuple[str, ...]) -> None:
        super().__init__(module, pad_id, heads)
        what = "the base is an encoder-decoder whose config.json does not say with what an answer begins"
        with reading(what, BaseModelError, "take the file from where the base is published, or choose another base"):
            module.prepare_decoder_input_ids_from_labels(labels=torch.zeros(1, 1, dtype=torch.long))

    def label_logits(self, packed: Packed) -> Tensor:
        sources, targets = [], []
        pairs = zip(
            packed.ids_T.split(packed.segments.lengths), packed.labels_T.split(packed.segments.lengths), strict=True
        )
        for ids, labels in pairs:
            count = int((labels != IGNORE_INDEX).sum())
            sources.append(ids[: len(ids) - count])
            targets.append(ids[len(ids) - count :])
        labels_BT = pad_sequence(targets, batch_first=True, padding_value=IGNORE_INDEX)
        shifted_BT = self._network.prepare_decoder_input_ids_from_labels(labels=labels_BT)
        logits = self._network(**self._padded(sources), decoder_input_ids=shifted_BT, use_cache=False).logits
        return torch.cat([row[: len(target)] for row, target in zip(logits, targets, strict=True)])

    def _answer(self, tokenizer: Tokenizer, rows: list[Tensor], max_new_tokens: int) -> list[Answer]:
        written = self._network.generate(
            **self._padded(rows), max_new_tokens=max_new_tokens, do_sample=False, num_beams=1
        )
        answers = []
        for ids in written[:, 1:].tolist():  # after the token that begins every answer
            end = next((i for i, token in enumerate(ids) if token in tokenizer.stop_ids), None)
            own = ids if end is None else ids[:end]
            answers.append(Answer(tokenizer.decode(own).strip(), len(own), end is not None))
        return answers
