"""The page of a data check, and of a row as the model sees it."""

from collections.abc import Sequence
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
    """A row as tokens: the text of each, and whether it has a label."""

    where: str
    tokens: list[tuple[str, bool]]


def rendered(tokenizer: Tokenizer, row: Row) -> Rendered:
    """The tokens of `row`; those that share a character of several bytes are joined."""
    tokens: list[tuple[str, bool]] = []
    held: list[int] = []
    for token, label in zip(row.input_ids, row.labels, strict=True):
        held.append(token)
        text = str(tokenizer.inner.decode(held, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if not text.endswith("\ufffd"):
            tokens.append((text, label != IGNORE_INDEX))
            held = []
    if held:
        tokens.append((str(tokenizer.inner.decode(held)), row.labels[-1] != IGNORE_INDEX))
    return Rendered(row.location, tokens)


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
