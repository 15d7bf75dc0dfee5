"""Excel workbooks: the sheet with the most rows."""

import datetime
import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any

from afina.core.errors import DataError
from afina.core.limits import SHEET_CELLS, SHEET_ROWS, WORKBOOK_BYTES, WORKBOOK_RATIO
from afina.data.files import File, expands, reading_data
from afina.data.formats import Format
from afina.data.formats._tables import Line, records
from afina.data.rows import Notes, Record, Rejected
from afina.data.settings import DataSettings

_MERGED = re.compile(rb'<(?:\w+:)?mergeCell\b[^>]*\bref="([A-Z]{1,3})(\d{1,7}):([A-Z]{1,3})(\d{1,7})"')
_MERGED_BYTES = 1 << 20  # of a sheet's XML after its cells
# The cells of one column that are merged with those below, by the number of their first row: the column, and their last
# row.
Merged = dict[int, list[tuple[int, int]]]
_SUFFIXES = ("", ".xlsx", ".xlsm", ".xls", ".csv")  # of files that are workbooks where their bytes say so


def _read(file: File, settings: DataSettings, notes: Notes) -> Iterator[Record | Rejected]:
    import openpyxl

    with reading_data(file.name):
        with file.open() as content:
            packed = io.BytesIO(content.read())
        _check_unpacked(packed, file.name)
        book = openpyxl.load_workbook(packed, read_only=True, data_only=True)
        sheets = [sheet for sheet in book.worksheets if any(True for _ in _lines(sheet, file.name))]
        if len(sheets) > 1:
            sheets.sort(key=lambda sheet: -sum(1 for _ in _lines(sheet, file.name)))
            others = ", ".join(repr(sheet.title) for sheet in sheets[1:])
            notes.say(
                f"{file.name}: the sheet {sheets[0].title!r} is read, which has the most rows; not read: {others} "
                "(save what else is to be learned as a file of its own)"
            )
        if sheets:
            lines = _lines(sheets[0], file.name, _merged_downwards(sheets[0]))
            yield from records(lines, file.name, notes, padded=True)


def _check_unpacked(packed: io.BytesIO, name: str) -> None:
    """Raises `DataError` where the parts of a workbook are far larger than itself."""
    with zipfile.ZipFile(packed) as archive:
        unpacked = sum(each.file_size for each in archive.infolist())
    if unpacked > WORKBOOK_BYTES and unpacked > WORKBOOK_RATIO * packed.getbuffer().nbytes:
        raise expands(name, WORKBOOK_RATIO)


def _lines(sheet: Any, name: str, merged: Merged | None = None) -> Iterator[Line]:
    """The rows that hold anything, as far as they go, whatever size the sheet says it has. What stands in `merged`
    cells is in each of their rows."""
    sheet.reset_dimensions()
    cells, repeated = 0, dict[int, tuple[Any, int]]()
    for number, values in enumerate(sheet.iter_rows(values_only=True), 1):
        cells += len(values)
        if number > SHEET_ROWS or cells > SHEET_CELLS:
            raise DataError(
                f"{name}: the sheet {sheet.title!r} goes on to row {number:,} with {cells:,} cells",
                f"{SHEET_ROWS:,} rows and {SHEET_CELLS:,} cells are read: delete empty columns, or export it as CSV",
            )
        if not values:  # of the rows that a sheet leaves out there may be a million
            continue
        row = list(values)
        for column, (value, last) in [*repeated.items()]:
            if number > last:
                del repeated[column]
            elif column < len(row):
                row[column] = value
        repeated |= {
            column: (row[column], last) for column, last in (merged or {}).get(number, ()) if column < len(row)
        }
        width = next((i for i in range(len(row), 0, -1) if row[i - 1] is not None and _cell(row[i - 1])), 0)
        if width:
            yield number, [_cell(value) for value in row[:width]]


def _merged_downwards(sheet: Any) -> Merged:
    """openpyxl does not tell of merged cells where it reads row by row."""
    from openpyxl.utils import column_index_from_string

    xml, found = b"", Merged()
    with sheet.parent._archive.open(sheet._worksheet_path) as content:
        after = False  # the cells, whose XML is not kept
        while len(xml) < _MERGED_BYTES and (chunk := content.read(1 << 16)):
            xml += chunk
            if not after:
                at = xml.find(b"</sheetData>")
                after, xml = at >= 0, xml[at if at >= 0 else -16 :]
    for left, top, right, bottom in _MERGED.findall(xml if after else b""):
        if left == right:
            found.setdefault(int(top), []).append((column_index_from_string(left.decode()) - 1, int(bottom)))
    return found


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():  # so openpyxl reads a date
        value = value.date()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


FORMAT = Format(
    "excel",
    _read,
    (".xlsx",),
    signature=lambda start, suffix: start.startswith(b"PK\x03\x04") and suffix in _SUFFIXES,
    package=("openpyxl", "excel"),
)
