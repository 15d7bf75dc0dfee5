"""Rendered rows of at most so many tokens: what is longer is an error, cut, dropped, or (plain text) divided."""

import itertools
from collections.abc import Iterable, Iterator

from afina.core.errors import DataError
from afina.data.mapping import Example, Unusable
from afina.data.rows import Rejected, Rejections
from afina.data.settings import DataSettings
from afina.data.template import Row, divide, render, render_batches, shorten
from afina.models.tokenizer import Tokenizer

DEFAULT_MAX_LENGTH = 1024  # tokens
_BATCH = 256  # rows that are rendered at once


class Fitter:
    """Renders examples, and treats those longer than `max_length` tokens as `too_long` says; the base could read
    `context` tokens."""

    def __init__(self, tokenizer: Tokenizer, max_length: int, too_long: str, context: int = 0) -> None:
        self.tokenizer, self.max_length, self.too_long, self.context = tokenizer, max_length, too_long, context
        self.rejected = Rejections()
        self.long = self.longest = 0
        self.cut = self.divided = 0

    def fit(self, examples: Iterable[Example]) -> list[tuple[Row, Example]]:
        """The rows of those that can be used, with the examples as they were cut."""
        return [(row, example) for row, example, _ in self.fit_marked((example, 0) for example in examples)]

    def fit_marked(self, examples: Iterable[tuple[Example, int]]) -> Iterator[tuple[Row, Example, int]]:
        """`fit` of examples that carry a number (that of their split), as a stream."""
        marked = iter(examples)
        batches = iter(lambda: list(itertools.islice(marked, _BATCH)), [])
        for batch, rendered in render_batches(self.tokenizer, batches):
            for (example, mark), row in zip(batch, rendered, strict=True):
                try:
                    pairs = self._fitted(example, row)
                except Unusable as reason:
                    self.rejected.add(Rejected(example.location, str(reason)))
                    continue
                for pair in pairs:
                    yield *pair, mark

    def _fitted(self, example: Example, row: Row | Unusable) -> list[tuple[Row, Example]]:
        if isinstance(row, Unusable):
            raise row
        length = len(row.input_ids)
        if length <= self.max_length:
            return [(row, example)]
        if not example.messages:
            self.divided += 1
            pieces = divide(self.tokenizer, example, self.max_length)
            return [(render(self.tokenizer, piece), piece) for piece in pieces]
        self.long, self.longest = self.long + 1, max(self.longest, length)
        if self.too_long == "error":
            return []
        if self.too_long == "drop":
            raise Unusable(f"longer than {self.max_length} tokens (dropped, as asked)")
        uncut, excess = example, length - self.max_length
        # Cutting text and tokenising it again may save a token or two fewer than were cut.
        while len(row.input_ids) > self.max_length:
            example = shorten(self.tokenizer, uncut, excess)
            row = render(self.tokenizer, example)
            excess += max(1, len(row.input_ids) - self.max_length)
        self.cut += 1
        return [(row, example)]

    def check_lengths(self, settings: DataSettings, total: int) -> None:
        """Raises `DataError` where rows were too long and that is an error."""
        if self.long and self.too_long == "error":
            remedy = "raise --data.max_length, or " if self.max_length < self.context else ""
            raise DataError(
                f"{settings.path}: {self.long} of {total} rows are longer than {self.max_length} tokens "
                f"(the longest has {self.longest})",
                f"{remedy}choose --data.too_long cut (shortens prompts, keeps answers) or drop",
            )

    def notices(self) -> list[str]:
        """What was done to how many rows."""
        lines = [f"{self.cut} prompts were cut to fit {self.max_length} tokens"] if self.cut else []
        if self.divided:
            lines.append(f"{self.divided} texts were divided into rows of at most {self.max_length} tokens")
        return lines
