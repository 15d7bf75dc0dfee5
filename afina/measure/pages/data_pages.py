"""The page of a data check, and of a row as the model sees it."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from afina.data.quality.checks import Check
from afina.data.template import Row
from afina.measure.pages.plots import bars, histogram
from afina.measure.pages.rendering import render_page
from afina.models.model import IGNORE_INDEX
from afina.models.tokenizer import Tokenizer

_MOST_BARS = 40


@dataclass(frozen=True)
class Rendered:
    """A row of a file as tokens (of one rendering after another, where it is learned turn by turn): the text of each,
    and whether it has a label."""

    where: str
    tokens: list[tuple[str, bool]]

    def texts(self, learned: bool) -> list[str]:
        """The text of each stretch of tokens that are learned (or of each that are not), in order."""
        stretches = itertools.groupby(self.tokens, key=lambda token: token[1])
        return ["".join(text for text, _ in tokens) for labelled, tokens in stretches if labelled == learned]


def rendered(tokenizer: Tokenizer, rows: Sequence[Row]) -> Rendered:
    """The tokens of the rows of one example, whose texts together are the rows'; those that share a character of
    several bytes are joined."""
    return Rendered(rows[0].location, [token for row in rows for token in _tokens(tokenizer, row)])


def _tokens(tokenizer: Tokenizer, row: Row) -> Iterator[tuple[str, bool]]:
    def decode(ids: list[int]) -> str:
        return str(tokenizer.inner.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    before: list[int] = []  # the tokens of the text before: many a decoder drops the space that a text begins with
    held: list[int] = []
    for i, (token, label) in enumerate(zip(row.input_ids, row.labels, strict=True), 1):
        held.append(token)
        shown, whole = decode(before), decode(before + held)
        text = whole.removeprefix(shown) if whole.startswith(shown) else decode(held)
        if i == len(row.input_ids) or not text.endswith("\ufffd"):
            yield text, label != IGNORE_INDEX
            before, held = held, []


def row_page(row: Rendered) -> str:
    return render_page("row.html", row=row)


def check_page(check: Check, rows: Sequence[Rendered], max_length: int, following: str) -> str:
    plots = []
    if check.lengths:
        plots.append(("Row lengths", histogram(check.lengths, "tokens per row", max_length)))
        plots.append(("Answer lengths", histogram(check.answers, "labelled tokens per row")))
    if 1 < len(check.labels) <= _MOST_BARS:
        plots.append(("Answers", bars(list(check.labels.items()), "rows")))
    return render_page("check.html", check=check, rendered=rows, plots=plots, next=following)
