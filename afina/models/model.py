"""What can be asked of a frozen model: a protocol for each ability, and what goes in and comes out.

T tokens of all rows, packed without padding; N labelled positions; V vocabulary; B active sequences.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn import functional as F

from afina.engine.ops import Segments
from afina.models.tokenizer import Tokenizer

IGNORE_INDEX = -100  # the label of a position that has no loss, PyTorch's default
Quantize = Literal["nf4", "int8", "keep"]  # how frozen weights are quantised; keep: as the GGUF file has them


@dataclass(frozen=True)
class Packed:
    """Rows one after another. Each of `labels_T` stands at the position that predicts it (shifted); `IGNORE_INDEX`
    where there is none."""

    ids_T: Tensor
    labels_T: Tensor
    segments: Segments

    @property
    def tokens(self) -> int:
        return len(self.ids_T)

    @cached_property
    def labelled_N(self) -> Tensor:
        """The positions that have a label."""
        return (self.labels_T != IGNORE_INDEX).nonzero().squeeze(1)

    @property
    def labelled(self) -> int:
        return len(self.labelled_N)


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

    def summed_loss(self, packed: Packed) -> Tensor:
        """The sum over labelled positions of −log p(label), a scalar, in nats, in fp32."""

    def label_losses(self, packed: Packed) -> Tensor:
        """−log p(label) at each labelled position (N), in nats, in fp32."""

    def label_logits(self, packed: Packed) -> Tensor:
        """Logits (N, V) at the labelled positions, in order."""

    def checkpoint_activations(self) -> None:
        """From now on training keeps only each layer's input, and recomputes the rest in the backward pass."""


class ActiveSequences(Protocol):
    """Sequences that are being generated. They have an order, which every call keeps; new ones come last."""

    can_add: bool  # whether others may be added while some are active

    def prefill(self, prompts: Sequence[list[int]]) -> Tensor:
        """Adds sequences that begin with these prompts; the logits (len(prompts), V) of their first new tokens."""

    def decode(self, ids_B: Tensor) -> Tensor:
        """Appends a token to each sequence; the logits (B, V) of the next."""

    def retain(self, indices: Sequence[int]) -> None:
        """Drops all sequences but those at `indices`."""


class Writer(Model, Protocol):
    """A model that continues text."""

    def start(self, slots: int, room: int, prefix: Sequence[int] = ()) -> ActiveSequences:
        """Memory for `slots` sequences of `room` tokens, prompts included; it grows where more is needed.

        The `prefix` is read once, for all prompts that begin with it. The model must not change while sequences are
        active.
        """


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
