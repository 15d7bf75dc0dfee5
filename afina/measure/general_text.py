"""The general text on which forgetting is measured: its loss before and after adaptation to an unrelated task.

The texts are in `afina/examples`: forty paragraphs of many topics in English, and forty in Portuguese.
"""

from functools import lru_cache
from pathlib import Path

from afina.data.mapping import Example
from afina.data.template import Row, render
from afina.models.tokenizer import Tokenizer

LANGUAGES = {"en": "English", "pt": "Portuguese"}
FORGOTTEN = 0.2  # nats per token: each token is a fifth less probable than before


@lru_cache
def paragraphs(language: str) -> list[str]:
    path = Path(__file__).parents[1] / "examples" / f"general_{language}.txt"
    return [text.strip() for text in path.read_text(encoding="utf-8").split("\n\n") if text.strip()]


def general_rows(tokenizer: Tokenizer, most: int) -> dict[str, list[Row]]:
    """A row per paragraph, of up to `most` tokens, by language."""
    return {
        language: [
            _row(tokenizer, Example((), text, (), "", f"general text {language}:{i}", unfinished=True), most)
            for i, text in enumerate(paragraphs(language), 1)
        ]
        for language in LANGUAGES
    }


def _row(tokenizer: Tokenizer, example: Example, most: int) -> Row:
    (row,) = render(tokenizer, example)
    return Row(row.input_ids[:most], row.labels[:most], row.location)
