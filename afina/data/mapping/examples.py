"""All examples of a file, one after another."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

from afina.core.errors import DataError, SettingsError, near
from afina.data.mapping.converting import Converter
from afina.data.mapping.example import Example, Refused, Unusable
from afina.data.read import OpenFiles, read
from afina.data.rows import Notes, Record, Rejected, Rejections
from afina.data.settings import DataSettings

_SAMPLE = 1000  # rows from whose columns and values the layout is recognised


def read_examples(
    settings: DataSettings, *, needs_completion: bool, files: OpenFiles | None = None
) -> tuple[list[Example], Rejections, Notes]:
    """Every usable example of the file, every other row with its reason, and what was found out about the file.

    Raises `DataError` where none is usable.
    """
    notes, rejected = Notes(), Rejections()
    examples = list(usable_examples(settings, notes, rejected, needs_completion=needs_completion, files=files))
    check_usable(settings, len(examples), rejected)
    return examples, rejected, notes


def usable_examples(
    settings: DataSettings,
    notes: Notes,
    rejected: Rejections,
    *,
    needs_completion: bool = True,
    files: OpenFiles | None = None,
) -> Iterator[Example]:
    """The examples of the rows that can be used; the others go into `rejected`."""
    for row in map_examples(settings, notes, needs_completion=needs_completion, files=files):
        if isinstance(row, Rejected):
            rejected.add(row)
        else:
            yield row


def check_usable(settings: DataSettings, count: int, rejected: Rejections) -> None:
    """Raises `DataError` where a file's `count` of usable rows is zero."""
    if not count and not rejected:
        raise DataError(f"data {settings.path} is empty: it holds no example", "give a file with at least one")
    if not count:
        raise DataError([f"{settings.path}: no row can be used", *rejected.lines()], "fix the file or the templates")


def map_examples(
    settings: DataSettings, notes: Notes, *, needs_completion: bool, files: OpenFiles | None = None
) -> Iterator[Example | Rejected]:
    """Reads the data: an example of each record that can be used; the other rows with their reasons, in their order.

    With templates: the columns that they name. Without: a layout that is known (layouts.py), which goes into `notes`.
    Columns that no row has, or for which no layout is known, raise `DataError`: then the mapping is wrong, not the row.
    """
    rows = _renamed(read(settings, notes, files), settings)
    start = list(itertools.islice(rows, _SAMPLE))
    records = [row for row in start if isinstance(row, Record)]
    convert = Converter(settings, [record.values for record in records], notes, needs_completion) if records else None
    for row in itertools.chain(start, rows):
        if isinstance(row, Rejected):
            yield row
            continue
        if convert is None:
            convert = Converter(settings, [row.values], notes, needs_completion)
        try:
            yield convert(row)
        except Unusable as reason:
            yield Rejected(row.location, str(reason), meant=not isinstance(reason, Refused))


def _renamed(rows: Iterator[Record | Rejected], settings: DataSettings) -> Iterator[Record | Rejected]:
    """The rows with the columns of `settings.map` under the names that layouts know."""
    if settings.map is None:
        return rows
    pairs = [[part.strip() for part in pair.split("=")] for pair in settings.map.split(",")]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise SettingsError(f"--map {settings.map!r} does not name columns", "write name=column,name=column")
    known = {column: name for name, column in pairs}

    def renamed(row: Record | Rejected) -> Record | Rejected:
        if isinstance(row, Rejected):
            return row
        return replace(row, values={known.get(name, name): value for name, value in row.values.items()})

    first = next(rows, None)
    if isinstance(first, Record):
        absent = [column for column in known if column not in first.values]
        if absent:
            raise SettingsError(
                f"--map names {absent[0]!r}, which is not a column of {settings.path}."
                f"{near(absent[0], list(first.values))}",
                f"the columns are {', '.join(map(repr, first.values))}",
            )
    return map(renamed, rows if first is None else itertools.chain([first], rows))
