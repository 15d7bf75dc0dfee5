"""Tables (CSV, TSV, Excel): delimiter, preamble and header are found in the first lines, and said."""

import csv
import datetime
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from afina.core.errors import DataError
from afina.data.files import Encoding, Piece, unreadable
from afina.data.rows import Notes, Record, Rejected

DELIMITERS = ",;\t|"
_SAMPLE = 400  # lines
_LONGEST_RECORD = 2000  # lines; beyond, a quote was not closed
_NUMBER = re.compile(r"[-+]?[\d.,:/ %-]*\d[\d.,:/ %-]*")
_TOTAL = re.compile(r"\W*(sub|grand )?tot(al|ais|als|ales)( geral| general)?\W*", re.IGNORECASE)
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

Line = tuple[int, list[str]]  # number of the first line, and the fields


@dataclass(frozen=True)
class Dialect:
    delimiter: str
    quoting: int = csv.QUOTE_MINIMAL

    def parse(self, lines: Iterable[str], name: str) -> Iterator[Line]:
        """Rows that hold anything. Raises `DataError` where a quote is not closed."""
        csv.field_size_limit(1 << 30)
        reader = csv.reader(lines, delimiter=self.delimiter, quoting=self.quoting)  # type: ignore[arg-type]
        while True:
            start = reader.line_num + 1
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise DataError(
                    f"{name}:{reader.line_num}: not CSV ({error})", "check the quotes on that line"
                ) from error
            if row is None:
                return
            if reader.line_num - start >= _LONGEST_RECORD:
                raise DataError(f"{name}:{start}: a quote is opened here and not closed", "close it, or delete it")
            if row and any(row):
                yield start, row


def read_csv(piece: Piece, encoding: Encoding, notes: Notes) -> Iterator[Record | Rejected]:
    """The rows of a text file whose columns are set apart by commas, semicolons, tabs or bars."""
    with encoding.text(piece) as file:
        sample = list(_lines(itertools.islice(file, _SAMPLE), piece))
    dialect = _dialect(sample, piece)
    if dialect.delimiter != ",":
        notes.say(f"{piece.name}: columns are set apart by {_NAMES[dialect.delimiter]}")
    if dialect.quoting == csv.QUOTE_NONE:
        notes.say(f"{piece.name}: quotes are taken as text, for they do not come in pairs")
    with encoding.text(piece) as file:
        yield from _rows(dialect.parse(_lines(file, piece), piece.name), piece.name, notes, padded=False)


def read_excel(piece: Piece, notes: Notes) -> Iterator[Record | Rejected]:
    """The rows of the first sheet that holds any."""
    try:
        import openpyxl

        with piece.open() as file:
            book = openpyxl.load_workbook(io.BytesIO(file.read()), read_only=True, data_only=True)
            sheets = [sheet for sheet in book.worksheets if sheet.max_row]
            if len(sheets) > 1:
                notes.say(f"{piece.name}: the sheet {sheets[0].title!r} is read, the other {len(sheets) - 1} are not")
            cells = [[_cell(value) for value in row] for row in sheets[0].iter_rows(values_only=True)] if sheets else []
    except ModuleNotFoundError:
        raise
    except Exception as error:  # openpyxl raises whatever the archive within does
        raise unreadable(piece.name, error) from error
    lines = ((number, _trimmed(row)) for number, row in enumerate(cells, 1) if any(row))
    yield from _rows(lines, piece.name, notes, padded=True)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _trimmed(row: list[str]) -> list[str]:
    while row and not row[-1]:
        row = row[:-1]
    return row


def _lines(file: Iterable[str], piece: Piece) -> Iterator[str]:
    try:
        for line in file:
            yield line.replace("\0", "")
    except (UnicodeError, OSError, EOFError) as error:
        raise unreadable(piece.name, error) from error


def _dialect(sample: list[str], piece: Piece) -> Dialect:
    """That which gives most rows of the sample one width, of two columns or more."""
    found = Dialect("\t" if piece.suffix == ".tsv" else ",")
    best = 0.0
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_NONE):
        for delimiter in DELIMITERS:
            dialect = Dialect(delimiter, quoting)
            share = _regularity(dialect, sample, piece)
            # Quotes as text only where that is much better, as with a lone inch sign in a file of tabs.
            if share > best + (0.2 if quoting == csv.QUOTE_NONE else 1e-9):
                found, best = dialect, share
    return found


def _regularity(dialect: Dialect, sample: list[str], piece: Piece) -> float:
    try:
        widths = [len(row) for _, row in dialect.parse(sample, piece.name)]
    except DataError:
        return 0.0
    if not widths:
        return 0.0
    width, count = _usual(widths)
    # Many lines swallowed by one quoted field are no rows.
    return 0.0 if width < 2 else count / len(widths) * min(1.0, 4 * len(widths) / max(1, len(sample)))


def _usual(widths: list[int]) -> tuple[int, int]:
    """The commonest width, and how many rows have it; one column only where no row has more."""
    counts = Counter(width for width in widths if width > 1) or Counter(widths)
    return max(counts.items(), key=lambda item: (item[1], item[0]))


def _rows(lines: Iterator[Line], name: str, notes: Notes, padded: bool) -> Iterator[Record | Rejected]:
    """Records of the lines behind the header; others are rejected. `padded`: short rows lack empty cells at their end."""
    start = list(itertools.islice(lines, _SAMPLE))
    if not start:
        return
    width, _ = _usual([len(row) for _, row in start])
    width = max(width, max((len(row) for _, row in start[:1]), default=0)) if padded else width
    first = next((i for i, (_, row) in enumerate(start) if len(row) == width), 0)
    for number, row in start[:first]:
        notes.say(f"{name}:{number}: left out before the header: {' '.join(row)[:60]!r}")
    header, body = start[first][1], start[first + 1 :]
    if _is_header(header, body):
        names = _names(header, name, notes)
    else:
        names = [f"column_{i}" for i in range(1, width + 1)]
        notes.say(f"{name} has no header: its columns are called {', '.join(names)}")
        body = start[first:]
    rejected = 0  # one after another
    for number, row in itertools.chain(body, lines):
        where = f"{name}:{number}"
        cells = row + [""] * (width - len(row)) if padded else row
        if len(cells) > width and not any(cells[width:]):
            cells = cells[:width]
        if len(cells) == width:
            rejected = 0
            if _TOTAL.fullmatch(next((cell for cell in cells if cell.strip()), "")):
                notes.say(f"{where} looks like a total, not like a row: {' '.join(cells)[:60]!r}")
            yield Record(dict(zip(names, cells, strict=True)), where)
        else:
            rejected += 1
            yield Rejected(where, f"{len(cells)} fields, the header has {width}")
    if rejected > 1:
        notes.say(f"{name}: the last {rejected} lines are no rows: a footer, which is left out")


def _is_header(row: list[str], body: list[Line]) -> bool:
    """Whether a first row names columns: short, no numbers, nothing that is a value of its column below."""
    if any(_NUMBER.fullmatch(cell.strip()) or len(cell) > 100 for cell in row) or not any(cell.strip() for cell in row):
        return False
    columns = [{other[i].strip() for _, other in body if len(other) == len(row)} for i in range(len(row))]
    return not any(cell.strip() and cell.strip() in column for cell, column in zip(row, columns, strict=True))


def _names(header: list[str], name: str, notes: Notes) -> list[str]:
    names: list[str] = []
    for i, cell in enumerate(header, 1):
        wanted = cell.strip() or f"column_{i}"
        unique = next(
            n for n in itertools.chain([wanted], (f"{wanted}_{k}" for k in itertools.count(2))) if n not in names
        )
        if unique != cell.strip():
            notes.say(
                f"{name}: column {i} is called {unique!r}, for its header is {'empty' if not cell.strip() else 'there already'}"
            )
        names.append(unique)
    return names
