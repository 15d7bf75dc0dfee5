"""What exports are in the workspace: `export.json` and `EXPORT.md` of each, found by the weights they were made of."""

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from textwrap import dedent
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from afina.core.errors import InputError
from afina.core.files import read_json, read_text, sha256
from afina.measure.pages.summary import interval
from afina.ui.studio.scores import local, metric, score
from afina.ui.studio.words import Refused, Words

_RECORD, _GUIDE = "export.json", "EXPORT.md"
_GUIDE_BYTES = 1 << 20
_HOW_TO_RUN = re.compile(r"^## How to run it\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_PART = re.compile(
    r"^#+ (?P<heading>.+)\n|(?P<lines>(?:^ {4}.*\n|^\n(?= {4}))+)|(?P<words>(?:^(?! {4}|#).+\n)+)", re.MULTILINE
)
Kind = Literal["heading", "words", "lines"]


class _Recorded(BaseModel):
    """A part of `export.json`; it holds more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _Difference(_Recorded):
    value: float | None
    low: float | None
    high: float | None


class _Differences(_Recorded):
    kl: float | None
    score: float | None
    difference: _Difference


class _Form(_Recorded):
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()
    differences: _Differences | None = None


class _File(_Recorded):
    bytes: int
    sha256: str


class _Adapter(_Recorded):
    sha256: str


class _Rows(_Recorded):
    count: int


class _Record(_Recorded):
    adapter: _Adapter
    rows: _Rows
    metric: str
    score: float | None
    forms: dict[str, _Form]
    files: dict[str, _File]


class Loss:
    """What a form of an export loses, in the reader's words: its `score` beside the adapted model's `before`, and their
    `difference` with its `interval`."""

    def __init__(self, words: Words, record: _Record, found: _Differences) -> None:
        name, apart = record.metric, found.difference
        self.metric, self.rows = metric(words, name), words.number(record.rows.count)
        self.before, self.score = score(words, name, record.score), score(words, name, found.score)
        self.difference = score(words, name, apart.value, sign=True)
        self.interval = local(words, interval(name, apart.model_dump()))
        self.kl = words.number(found.kl, 4) if found.kl is not None else ""


class Exported:
    """A finished export: a folder with files, sizes and differences. Raises `InputError` where it cannot be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.record = _Record.model_validate(read_json(folder / _RECORD))
        except ValidationError as error:
            raise InputError(f"{folder / _RECORD} does not hold what an export writes there") from error

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.record.files.values())

    @property
    def guide(self) -> list[tuple[Kind, str]]:
        """How other programs run it: headings, words, and lines to copy. What is measured and noted the record has
        too."""
        try:
            text = read_text(self.folder / _GUIDE, _GUIDE_BYTES, InputError)
        except (OSError, UnicodeDecodeError, InputError):
            return []
        found = _HOW_TO_RUN.search(text)
        return list(_parts(f"{found[1]}\n")) if found else []

    def file(self, name: str) -> Path:
        """One of its files, to be read. Raises `Refused` where it has none of this name."""
        path = self.folder / name
        if name not in self.record.files or not path.is_file() or path.resolve() != self.folder.resolve() / name:
            raise Refused("no_file", name=name[:80])
        return path

    def size_of(self, form: str) -> int:
        """The bytes of the files of one of its forms."""
        files = self.record.files
        return sum(files[name].bytes for name in self.record.forms[form].files if name in files)

    def loss_of(self, form: str, words: Words) -> Loss | None:
        """None of a form that was not compared, since it has no weights of its own."""
        found = self.record.forms[form].differences
        return Loss(words, self.record, found) if found else None


def _parts(text: str) -> Iterator[tuple[Kind, str]]:
    """The headings, paragraphs and indented lines of Markdown."""
    for match in _PART.finditer(text):
        if match["heading"]:
            yield "heading", match["heading"]
        elif match["lines"]:
            yield "lines", dedent(match["lines"]).strip("\n")
        else:
            yield "words", " ".join(match["words"].split())


def exports_of(adapter: Path, folders: Iterator[Path]) -> list[Exported]:
    """The exports among `folders` that were made of the weights in the file `adapter`, the newest first."""
    if not adapter.is_file():
        return []
    facts = adapter.stat()
    wanted = _digest(adapter, facts.st_mtime_ns, facts.st_size)
    found = []
    for folder in folders:
        if folder.is_symlink() or not (folder / _RECORD).is_file():
            continue
        try:
            each = Exported(folder)
        except InputError:  # half a folder that somebody copied is no export
            continue
        if each.record.adapter.sha256 == wanted:
            found.append(each)
    return sorted(found, key=lambda each: (each.folder / _RECORD).stat().st_mtime, reverse=True)


@lru_cache(maxsize=64)
def _digest(path: Path, changed: int, size: int) -> str:
    """Of a file as it is: read again when it changes."""
    return sha256(path)
