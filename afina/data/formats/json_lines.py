"""JSON Lines: one object per line."""

from collections.abc import Iterator

from afina.data.files import File
from afina.data.formats import Format
from afina.data.formats._json import rows_of
from afina.data.formats._text import lines, note_encoding
from afina.data.rows import Notes, Record, Rejected
from afina.data.settings import DataSettings


def _read(file: File, settings: DataSettings, notes: Notes) -> Iterator[Record | Rejected]:
    note_encoding(file, notes)
    yield from rows_of(lines(file), file.name)


FORMAT = Format("jsonl", _read, (".jsonl", ".ndjson"), resembles=lambda start: start[:1] == b"{")
