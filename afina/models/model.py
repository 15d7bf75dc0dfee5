"""What can be asked of a frozen model: a protocol for each ability, and what goes in and comes out.

T tokens of all rows, packed without padding; N labelled positions; V vocabulary; B active sequences.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afina.core.updates import Updates
from afina.engine.ops import Segments
from afina.models.tokenizer import Tokenizer

IGNORE_INDEX = -100  # the label of a position that has no loss, PyTorch's default
Quantize = Literal["nf4", "int8", "keep"]  # how frozen weights are quantised; keep: as the GGUF file has them


@dataclass(frozen=True)
class Packed:
    """Rows in one pass, what they share once. The token at `at_N` predicts `labels_N`: where rows part, one token
    predicts several. `at_M` are the places of `at_N`, each once and in order, and `place_N` which of them each is.
    `weights_N` says in how many rows (None: in one each), and `rows` which of the N each row has, in its order."""

    ids_T: Tensor
    segments: Segments
    at_N: Tensor
    labels_N: Tensor
    at_M: Tensor
    place_N: Tensor
    weights_N: Tensor | None = None
    rows: tuple[Tensor, ...] = ()

    @property
    def labels_T(self) -> Tensor:
        """Of rows that share nothing the label of each token, `IGNORE_INDEX` where there is none."""
        return torch.full_like(self.ids_T, IGNORE_INDEX).index_put((self.at_N,), self.labels_N)

    @property
    def labelled(self) -> int:
        """Labelled tokens of all rows."""
        return len(self.labels_N) if self.weights_N is None else int(self.weights_N.sum())


def unshared(ids_T: Tensor, labels_T: Tensor, segments: Segments) -> Packed:
    """Rows that share nothing. Each of `labels_T` stands at the token that predicts it; `IGNORE_INDEX` where there is
    none."""
    at_N = (labels_T != IGNORE_INDEX).nonzero().squeeze(1)
    return Packed(ids_T, segments, at_N, labels_T[at_N], at_N, torch.arange(len(at_N), device=at_N.device))


@dataclass(frozen=True)
class Answer:
    """What the model generated: `text` without special tokens, the number of new `tokens`, and whether it `stopped`
    by itself or was cut at the limit."""

    text: str
    tokens: int
    stopped: bool


class Model(Protocol):
    """A frozen model. `module` is the network, with the names of `transformers`, into which adapters are injected;
    `heads` are the paths of its newly initialised modules, which are trained and saved in full."""

    module: nn.Module
    heads: tuple[str, ...]
    sharing: bool  # whether rows share what they begin with, as far as the model can

    def shares(self, lengths: Sequence[int]) -> list[int] | None:
        """A number for each row of so many tokens: rows of the same may share what they begin with. None where rows
        share nothing."""

    def summed_loss(self, packed: Packed) -> Tensor:
        """The sum over the labelled tokens of all rows of −log p(label), a scalar, in nats, in fp32."""

    def label_losses(self, packed: Packed) -> Tensor:
        """−log p(label) of each label (N), in nats, in fp32."""

    def label_logits(self, packed: Packed) -> Tensor:
        """Logits (N, V) where each label is predicted."""

    def checkpoint_activations(self) -> None:
        """From now on training keeps only each layer's input, and recomputes the rest in the backward pass."""


class ActiveSequences(Protocol):
    """Sequences that are being generated. They have an order, which every call keeps; new ones come last. A sequence is
    added with its prompt, which is read in one pass or in several, and then decoded token by token."""

    can_add: bool  # whether others may be added while some are active

    @property
    def bytes(self) -> int:
        """Of the keys and values that there is memory for."""

    def add(self, prompts: Sequence[list[int]], updates: Sequence[Updates | None]) -> list[int]:
        """Adds sequences with these prompts, of which nothing is computed yet, and with what an adapter adds to the
        base for them (None: nothing). How many tokens of each are there already, from another sequence with updates of
        the same key. Raises `AdapterError` for updates that `Writer.prepare` refuses."""

    def read(self, most: int) -> tuple[list[int], Tensor]:
        """Computes about `most` tokens of the prompts that are not read yet: of the oldest, but up to half of shorter
        ones; what several begin with counts once. The places of those whose prompt is read whole now, and the logits
        (n, V) of their first new tokens. Where a part of a prompt cannot be read alone, prompts are read whole, at
        least one."""

    def decode(self, ids_B: Tensor) -> Tensor:
        """Appends a token to each sequence whose prompt is read; the logits (B, V) of their next. Sequences whose
        prompt is not read whole wait. `record` follows, before other sequences are added."""

    def record(self, ids: Sequence[int]) -> None:
        """Which tokens the last `decode` appended: on a device they are computed before the host knows them."""

    def reserve(self, count: int, room: int) -> None:
        """Makes memory for so many sequences of so many tokens, prompts included, where there is less."""

    def shrink(self) -> int:
        """Leaves memory for one sequence, of as many tokens as there is now or as the bytes `kept` of `start` are
        enough for, and in so many bytes more those of sequences that are over. Not while others are active. The number
        of tokens; 0: there are no such bytes, and nothing is freed."""

    def retain(self, indices: Sequence[int]) -> None:
        """Drops all sequences but those at `indices`, whether their prompts are read or not."""


class Writer(Model, Protocol):
    """A model that continues text."""

    def start(self, slots: int, room: int, kept: int = 0) -> ActiveSequences:
        """Memory for `slots` sequences of `room` tokens, prompts included; it grows where more is needed. In up to
        `kept` bytes more stay the keys and values of sequences that are over, those used last, for prompts that begin
        as they do. The model must not change as long as it is used."""

    def prepare(self, updates: Updates) -> int:
        """Makes the updates ready for this model's products, once as long as they live; the bytes that this takes.
        Raises `AdapterError` with all that has no place in the model, and where rows of a batch cannot have updates of
        their own."""

    def prompt_logits(self, ids: Sequence[int], updates: Updates | None, most: int) -> Iterator[Tensor]:
        """The logits (n, V) after each token of a prompt, in parts of `most` tokens, each computed when it is asked
        for."""


@runtime_checkable
class Answerer(Model, Protocol):
    """A model that answers whole prompts: a classifier, or an encoder-decoder generating through `transformers`."""

    def answers(
        self, tokenizer: Tokenizer, prompts: Sequence[list[int]], max_new_tokens: int,
        on_progress: Callable[[int, int], None] | None,
    ) -> list[Answer]:  # fmt: skip
        """The answer to each of `prompts` (token ids), in their order; `on_progress(done, total)` is called after each
        batch."""


def token_losses(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """−log p(label) of each (N), in nats, in fp32."""
    return F.cross_entropy(logits_NV.float(), labels_N, reduction="none")
