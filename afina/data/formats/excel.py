"""Excel workbooks: the first sheet that holds any rows."""

import datetime
import io
from collections.abc import Iterator
from typing import Any

from afina.data.files import File, unreadable
from afina.data.formats import Format
from afina.data.formats._tables import records
from afina.data.rows import Notes, Record, Rejected
from afina.data.settings import DataSettings

_SUFFIXES = ("", ".xlsx", ".xlsm", ".xls", ".csv")  # of files that are workbooks where their bytes say so


def _read(file: File, settings: DataSettings, notes: Notes) -> Iterator[Record | Rejected]:
    import openpyxl

    try:
        with file.open() as content:
            book = openpyxl.load_workbook(io.BytesIO(content.read()), read_only=True, data_only=True)
        sheets = [sheet for sheet in book.worksheets if sheet.max_row]
        if len(sheets) > 1:
            notes.say(f"{file.name}: the sheet {sheets[0].title!r} is read, the other {len(sheets) - 1} are not")
        cells = [[_cell(value) for value in row] for row in sheets[0].iter_rows(values_only=True)] if sheets else []
    except Exception as error:  # openpyxl raises whatever the archive within does
        raise unreadable(file.name, error) from error
    lines = ((number, _trimmed(row)) for number, row in enumerate(cells, 1) if any(row))
    yield from records(lines, file.name, notes, padded=True)


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


FORMAT = Format(
    "excel",
    _read,
    (".xlsx",),
    signature=lambda start, suffix: start.startswith(b"PK\x03\x04") and suffix in _SUFFIXES,
    package=("openpyxl", "excel"),
)
