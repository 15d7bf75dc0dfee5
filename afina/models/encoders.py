"""Models that read a text whole: classifiers, and encoder-decoders. They run through transformers, behind `CausalModel` as others do.

Their rows are packed like any: a classifier's class stands at the first token, an encoder-decoder's answer follows the text.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from afina.core.layers import evaluation_mode
from afina.models.model import IGNORED, Answer, Packed, Writing, losses_of
from afina.models.tokenizer import Tokenizer

ROUND = 8  # lengths are padded to a multiple of this: the matrix library prepares itself anew for each new shape
READ_AT_ONCE = 4096  # tokens, padding included, of a pass that keeps nothing


class _Whole:
    def __init__(self, module: Any, pad_id: int, heads: tuple[str, ...]) -> None:
        self.module: nn.Module = module
        self.heads = heads  # paths of what is new in the model, and has to be trained whole
        self._pad = pad_id
        self._longest = int(getattr(module.config, "max_position_embeddings", 0) or 1 << 30)

    @property
    def _any(self) -> Any:
        return self.module

    def summed_loss(self, packed: Packed) -> Tensor:
        labels_N = packed.labels_T[packed.labelled_N]
        return F.cross_entropy(self.label_logits(packed).float(), labels_N, reduction="sum")

    def label_losses(self, packed: Packed) -> Tensor:
        return losses_of(self.label_logits(packed), packed.labels_T[packed.labelled_N])

    def label_logits(self, packed: Packed) -> Tensor:
        raise NotImplementedError

    def start(self, texts: int, room: int, prefix: Sequence[int] = ()) -> Writing:
        raise NotImplementedError("use `answers`")

    def checkpoint_activations(self) -> None:
        self._any.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def _padded(self, rows: Sequence[Tensor]) -> dict[str, Tensor]:
        ids = pad_sequence(list(rows), batch_first=True, padding_value=self._pad)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        room = min(-ids.shape[1] % ROUND, max(0, self._longest - ids.shape[1]))
        return {"input_ids": F.pad(ids, (0, room), value=self._pad), "attention_mask": F.pad(mask, (0, room))}

    @torch.inference_mode()
    def answers(
        self, tokenizer: Tokenizer, prompts: Sequence[list[int]], max_new_tokens: int,
        on_progress: Callable[[int, int], None] | None,
    ) -> list[Answer]:  # fmt: skip
        """The answer to each of `prompts` (token ids), in their order; longest first, in batches."""
        device = next(self.module.parameters()).device
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        found: dict[int, Answer] = {}
        with evaluation_mode(self.module):
            while len(found) < len(prompts):
                longest = len(prompts[order[len(found)]])
                group = order[len(found) : len(found) + max(1, READ_AT_ONCE // longest)]
                rows = [torch.tensor(prompts[i], device=device) for i in group]
                found |= zip(group, self._answer(tokenizer, rows, max_new_tokens), strict=True)
                if on_progress:
                    on_progress(len(found), len(prompts))
        return [found[i] for i in range(len(prompts))]

    def _answer(self, tokenizer: Tokenizer, rows: list[Tensor], max_new_tokens: int) -> list[Answer]:
        raise NotImplementedError


class ClassifierModel(_Whole):
    """An encoder with a classification head: one label a row, the number of its class."""

    def label_logits(self, packed: Packed) -> Tensor:
        logits: Tensor = self._any(**self._padded(packed.ids_T.split(packed.segments.lengths))).logits
        return logits

    def _answer(self, tokenizer: Tokenizer, rows: list[Tensor], max_new_tokens: int) -> list[Answer]:
        found = self._any(**self._padded(rows)).logits.float().argmax(-1).tolist()
        return [Answer(tokenizer.classes[i], 1, True) for i in found]


class Seq2SeqModel(_Whole):
    """An encoder-decoder: the unlabelled tokens of a row are read, the labelled ones behind them are to be written."""

    def label_logits(self, packed: Packed) -> Tensor:
        sources, targets = [], []
        pairs = zip(
            packed.ids_T.split(packed.segments.lengths), packed.labels_T.split(packed.segments.lengths), strict=True
        )
        for ids, labels in pairs:
            count = int((labels != IGNORED).sum())
            sources.append(ids[: len(ids) - count])
            targets.append(ids[len(ids) - count :])
        labels_BT = pad_sequence(targets, batch_first=True, padding_value=IGNORED)
        begun = self._any.prepare_decoder_input_ids_from_labels(labels=labels_BT)
        logits = self._any(**self._padded(sources), decoder_input_ids=begun, use_cache=False).logits
        return torch.cat([row[: len(target)] for row, target in zip(logits, targets, strict=True)])

    def _answer(self, tokenizer: Tokenizer, rows: list[Tensor], max_new_tokens: int) -> list[Answer]:
        written = self._any.generate(**self._padded(rows), max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
        answers = []
        for ids in written[:, 1:].tolist():  # behind the token that begins every answer
            end = next((i for i, token in enumerate(ids) if token in tokenizer.stop_ids), None)
            own = ids if end is None else ids[:end]
            answers.append(Answer(tokenizer.decode(own).strip(), len(own), end is not None))
        return answers
