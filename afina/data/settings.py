"""The settings of data: which files, how they are read, and how their rows are split."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from afina.core.config import Settings, changed, setting
from afina.core.limits import COLUMN_TEMPLATE_CHARACTERS as _MOST
from afina.data.files.encodings import known_encoding
from afina.data.layouts import Kind, Layout

Encoded = Annotated[str, AfterValidator(known_encoding)] | None
"""The name of an encoding that Python knows."""

ASKING = ("encoding", "prompt", "completion", "system", "map", "text")
"""What an adapter records of its data: how rows are read and asked, and never which."""
_HELD_OUT = 0.1


class DataSettings(Settings):
    path: Path = setting(..., positional="DATA")
    """File of examples (JSONL, JSON, CSV, TSV, Parquet, Arrow, Excel, text; also compressed), a folder of them, - for
    standard input, or owner/name:config:split of the hub."""
    target: Path | None = setting(None)
    """Text file whose lines answer those of DATA (translation)."""
    text: Literal["paragraph", "line", "document"] = "paragraph"
    """What one row of a plain text file is."""
    encoding: Encoded = setting(None, "--data.encoding", "--encoding", metavar="NAME")
    """Encoding of text files, such as shift_jis, cp1251 or utf-16; by default found by a byte-order mark, as UTF-8, or
    else by what the text looks like."""
    prompt: str | None = setting(None, "--prompt", min_length=1, max_length=_MOST)
    """Template of the user's turn over columns, such as 'Describe: {mr}'; {name[0]} takes an item, {name[key]} a
    member, {{ and }} are braces."""
    completion: str | None = setting(None, "--completion", min_length=1, max_length=_MOST)
    """Template of the answer to learn, such as '{text}'."""
    system: str | None = setting(None, "--system", max_length=_MOST)
    """System message put before every conversation that has none."""
    map: str | None = setting(None, "--map", min_length=1, max_length=_MOST)
    """The file's own names of known columns, such as prompt=pergunta,completion=resposta."""
    learn: Literal["all", "last"] = "all"
    """Which turns of the assistant are learned: all of a conversation, or the last."""
    kind: Kind | None = setting(None, "--kind")
    """Kind of task, which decides how answers are scored; by default inferred from the layout and the answers."""
    references: str | None = setting(None, "--references", min_length=1, max_length=_MOST)
    """Column with the right answer, or a list of them, to score against instead of the completion; or several columns,
    with commas between."""
    limit: int | None = setting(None, "--limit", ge=1)
    """Use a sample of this many rows, drawn by seed before the split."""
    held_out: float = setting(_HELD_OUT, gt=0, lt=1)
    """Fraction of the rows that is held out (at most `held_out_rows`), grouped by identical prompt."""
    eval_path: Path | None = setting(None, "--eval-data", instead_of="held_out")
    """File of held-out examples; without it a fraction of the data is held out."""
    held_out_rows: int = setting(160, ge=1)
    """At most this many rows are held out and evaluated on."""
    test: float = setting(0.0, "--test", ge=0, lt=1)
    """Fraction of the rows in the test split (at most `test_rows`): evaluated on in the end, never looked at to choose
    anything."""
    test_path: Path | None = setting(None, "--test-data", instead_of="test")
    """File of the test split, instead of rows of DATA; --references then names a column of it."""
    test_rows: int = setting(640, ge=1)
    """At most this many rows are in the test split."""
    seed: int | None = setting(None, ge=0, lt=2**32)
    """Decides the sample and the split; by default the run's seed does."""
    max_length: int | None = setting(None, ge=8)
    """Longest row in tokens; by default 1024, or the base's context length where that is shorter."""
    too_long: Literal["error", "cut", "drop"] = "error"
    """What to do with longer rows: stop with a count, cut the prompt (never the answer), or drop the row."""

    @property
    def name(self) -> str:
        """What is made of these data is called so, where it is not named: the file, or the set without its part."""
        return Path(re.split(r"[:*?\[]", self.path.name)[0]).stem or self.path.parent.name or "data"

    @property
    def holds_out(self) -> bool:
        """Whether a file or a fraction is held out because the user said so."""
        return self.eval_path is not None or self.held_out != _HELD_OUT

    def asking(self) -> dict[str, Any]:
        """What another file must be read with so that its rows are prompted in the same way."""
        return {name: getattr(self, name) for name in ASKING if name != "text" or self.kind == "text"}

    def resolved(self, kind: Kind | None, layout: Layout | None, encoding: str | None) -> "DataSettings":
        """These with the kind of task, the templates of the layout and the encoding that were recognised in the
        file."""
        found: dict[str, Any] = {} if kind is None else {"kind": kind}
        if encoding is not None:
            found["encoding"] = encoding
        if layout is not None and layout.prompt is not None:
            found |= {"prompt": layout.prompt, "completion": layout.completion}
        return changed(self, found)
