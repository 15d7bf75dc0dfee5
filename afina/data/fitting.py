"""Rendered rows of at most so many tokens: what is longer is an error, cut, dropped, or (plain text) divided."""

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

from afina.core.errors import TooLong, counted
from afina.data.conversation import Remarks
from afina.data.mapping import Example, Unusable
from afina.data.rows import Rejected, Rejections
from afina.data.settings import DataSettings
from afina.data.template import Rendered, Row, divide, render, render_batches, shorten
from afina.models.tokenizer import Tokenizer

DEFAULT_MAX_LENGTH = 1024  # tokens
_BATCH = 256  # rows that are rendered at once
_CHARACTERS = 8 << 20  # about as many of them at most

T = TypeVar("T")


def _batch(examples: Iterator[tuple[Example, T]]) -> list[tuple[Example, T]]:
    found, size = list[tuple[Example, T]](), 0
    for example, mark in itertools.islice(examples, _BATCH):
        found.append((example, mark))
        size += len(example.source) + len(example.completion or "")
        size += sum(len(message["content"] or "") for message in example.messages)
        if size > _CHARACTERS:
            break
    return found


class Fitter:
    """Renders examples, and treats those longer than `max_length` tokens as `too_long` says; the base could read
    `context` tokens."""

    def __init__(self, tokenizer: Tokenizer, max_length: int, too_long: str, context: int = 0) -> None:
        self.tokenizer, self.max_length, self.too_long, self.context = tokenizer, max_length, too_long, context
        self.rejected, self.remarks = Rejections(), Remarks()
        self.rows = self.long = self.longest = 0
        self.longest_at = ""
        self.cut = self.divided = 0

    def fit(self, examples: Iterable[Example]) -> list[tuple[Row, Example]]:
        """The rows of those that can be used, with what asks for each: an example as it was cut, or a turn of it."""
        marked = ((example, 0) for example in examples)
        return [pair for pairs, _ in self.fit_marked(marked) for pair in pairs]

    def fit_marked(self, examples: Iterable[tuple[Example, int]]) -> Iterator[tuple[list[tuple[Row, Example]], int]]:
        """`fit` of each of the examples, which carry a number (that of their split), as a stream."""
        marked = iter(examples)
        batches = iter(lambda: _batch(marked), [])
        for batch, rendered in render_batches(self.tokenizer, batches, self.remarks):
            for (example, mark), rows in zip(batch, rendered, strict=True):
                try:
                    yield self._fitted(rows), mark
                except Unusable as reason:
                    self.rejected.add(Rejected(example.location, str(reason)))
                    yield [], mark

    def _fitted(self, rendered: Rendered) -> list[tuple[Row, Example]]:
        if isinstance(rendered, Unusable):
            raise rendered
        self.rows += len(rendered)
        return [pair for row, example in rendered for pair in self._fit(row, example)]

    def _fit(self, row: Row, example: Example) -> list[tuple[Row, Example]]:
        length = len(row.input_ids)
        if length <= self.max_length:
            return [(row, example)]
        if not example.messages:
            self.divided += 1
            pieces = divide(self.tokenizer, example, self.max_length)
            return [(row, piece) for piece in pieces for row in render(self.tokenizer, piece)]
        self.long += 1
        if length > self.longest:
            self.longest, self.longest_at = length, example.location
        if self.too_long == "error":
            return []
        if self.too_long == "drop":
            raise Unusable(f"longer than {self.max_length} tokens (dropped, as asked)")
        uncut, excess = example, length - self.max_length
        # Cutting text and tokenising it again may save a token or two fewer than were cut.
        while len(row.input_ids) > self.max_length:
            example = shorten(self.tokenizer, uncut, excess)
            (row,) = render(self.tokenizer, example)
            excess += max(1, len(row.input_ids) - self.max_length)
        self.cut += 1
        return [(row, example)]

    def check_lengths(self, settings: DataSettings) -> None:
        """Raises `TooLong` where rows were too long and that is an error."""
        if self.long and self.too_long == "error":
            remedy = "raise --data.max_length, or " if self.max_length < self.context else ""
            raise TooLong(
                f"{settings.path}: {counted(self.long, 'row is')} longer than {self.max_length} "
                f"tokens, of {self.rows:,} "
                f"(the longest has {self.longest}: {self.longest_at})",
                f"{remedy}choose --data.too_long cut (shortens prompts, keeps answers) or drop",
            )

    def notices(self) -> list[str]:
        """What was done to how many rows."""
        lines = [f"{counted(self.cut, 'prompt was')} cut to fit {self.max_length} tokens"] if self.cut else []
        if self.divided:
            lines.append(f"{counted(self.divided, 'text was')} divided into rows of at most {self.max_length} tokens")
        return [*lines, *self.remarks.lines()]
