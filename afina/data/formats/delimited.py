"""Text whose columns are separated by commas, semicolons, tabs or bars: the dialect is found in the first lines, and
noted."""

import csv
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TextIO

from afina.core.errors import DataError
from afina.core.limits import RECORD_CHARACTERS
from afina.data.files import File, reading_data
from afina.data.formats import Format
from afina.data.formats._tables import Line, records, sample, usual_width
from afina.data.formats._text import note_encoding, too_long
from afina.data.rows import Notes, Record, Rejected
from afina.data.settings import DataSettings

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_SAID = re.compile(r"\"?sep=(\W)\"?\s*$", re.IGNORECASE)  # a first line by which Excel knows the delimiter
_LONGEST_RECORD = 2000  # lines; beyond, a quote was not closed


@dataclass(frozen=True)
class Dialect:
    delimiter: str
    quoting: int = csv.QUOTE_MINIMAL

    def parse(self, lines: Iterable[str], name: str) -> Iterator[Line]:
        """Rows that hold anything. Raises `DataError` where a quote is not closed."""
        csv.field_size_limit(RECORD_CHARACTERS)
        fed = _Fed(lines, name)
        reader = csv.reader(fed, delimiter=self.delimiter, quoting=self.quoting)  # type: ignore[arg-type]
        while True:
            start = reader.line_num + 1
            fed.begin(start)
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise DataError(
                    f"{name}:{reader.line_num}: not CSV ({error})", "check the quotes on that line"
                ) from error
            if row is None:
                return
            if reader.line_num - start >= _LONGEST_RECORD:
                raise DataError(f"{name}:{start}: a quote opens here and is never closed", "close it, or delete it")
            if row and any(row):
                yield start, row


def _read(file: File, settings: DataSettings, notes: Notes) -> Iterator[Record | Rejected]:
    note_encoding(file, notes)
    with file.text() as text:
        lines = _lines(text, file)
        start = sample(lines, len)
        if said := _SAID.match(start[0]) if start else None:
            start[0], file.dialect = "\n", Dialect(said[1])
        dialect = file.dialect = file.dialect or _dialect(start, file)
        if dialect.delimiter != ",":
            notes.say(f"{file.name}: columns are separated by {DELIMITERS.get(dialect.delimiter, dialect.delimiter)}")
        if dialect.quoting == csv.QUOTE_NONE:
            notes.say(f"{file.name}: quotes are read as text, because they do not come in pairs")
        rows = dialect.parse(itertools.chain(start, lines), file.name)
        yield from records(rows, file.name, notes, padded=False)


class _Fed:
    """Lines, of which one row may take only so many characters."""

    def __init__(self, lines: Iterable[str], name: str) -> None:
        self._lines, self._name = iter(lines), name
        self.begin(1)

    def begin(self, line: int) -> None:
        """What comes is of the row in this line."""
        self._line, self._size = line, 0

    def __iter__(self) -> "_Fed":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._size += len(line)
        if self._size > RECORD_CHARACTERS:
            raise too_long(f"{self._name}:{self._line}")
        return line


def _lines(text: TextIO, file: File) -> Iterator[str]:
    with reading_data(file.name):
        for line in iter(partial(text.readline, RECORD_CHARACTERS + 1), ""):
            yield line.replace("\0", "")


def _dialect(sample: list[str], file: File) -> Dialect:
    """That which gives most rows of the sample one width, of two columns or more."""
    found = Dialect("\t" if file.suffix in (".tsv", ".tab") else ",")
    best = 0.0
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
        for delimiter in DELIMITERS:
            dialect = Dialect(delimiter, quoting)
            share = _regularity(dialect, sample, file)
            # Quotes as text only where that is much better, as with a lone inch sign in a file of tabs.
            if share > best + (0.2 if quoting == csv.QUOTE_NONE else 1e-9):
                found, best = dialect, share
    return found


def _regularity(dialect: Dialect, sample: list[str], file: File) -> float:
    try:
        widths = [len(row) for _, row in dialect.parse(sample, file.name)]
    except DataError:
        return 0.0
    if not widths:
        return 0.0
    width, count = usual_width(widths)
    # Many lines swallowed by one quoted field are not rows.
    return 0.0 if width < 2 else count / len(widths) * min(1.0, 4 * len(widths) / max(1, len(sample)))


FORMAT = Format("csv", _read, (".csv", ".tsv"), (".tab",))
