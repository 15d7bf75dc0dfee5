"""Pages of one file each, readable without network: what all share, and the page of a data check."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afina.data.quality.checks import Check
from afina.data.template import Row
from afina.measure.plots import bars, histogram
from afina.models.model import IGNORED
from afina.models.tokenizer import Tokenizer

_MOST_BARS = 40


def page(template: str, **values: Any) -> str:
    """The page of a template beside this file."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    return environment.get_template(template).render(**values)


@dataclass(frozen=True)
class Rendered:
    """A row as tokens: the text of each, and whether it is learned."""

    where: str
    tokens: list[tuple[str, bool]]


def rendered(tokenizer: Tokenizer, row: Row) -> Rendered:
    """Tokens that share a character (of several bytes) are shown together."""
    tokens: list[tuple[str, bool]] = []
    held: list[int] = []
    for token, label in zip(row.input_ids, row.labels, strict=True):
        held.append(token)
        text = str(tokenizer.inner.decode(held, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if not text.endswith("\ufffd"):
            tokens.append((text, label != IGNORED))
            held = []
    if held:
        tokens.append((str(tokenizer.inner.decode(held)), row.labels[-1] != IGNORED))
    return Rendered(row.location, tokens)


def row_page(row: Rendered) -> str:
    return page("row.html", row=row)


def check_page(check: Check, rows: Sequence[Rendered], max_length: int, following: str) -> str:
    plots = []
    if check.lengths:
        plots.append(("Length of rows", histogram(check.lengths, "tokens a row", max_length)))
        plots.append(("Length of answers", histogram(check.answers, "tokens learned a row")))
    if 1 < len(check.labels) <= _MOST_BARS:
        plots.append(("Answers", bars(list(check.labels.items()), "rows")))
    return page("check.html", check=check, rendered=rows, plots=plots, next=following)
