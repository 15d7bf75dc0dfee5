"""What tables share (CSV, TSV, Excel): the header is found in the first rows, and what surrounds the table is noted."""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeVar

from afina.core.errors import DataError, counted, enumerated
from afina.core.limits import COLUMNS, SAMPLE_CHARACTERS
from afina.data.rows import Notes, Record, Rejected, Told

SAMPLE = 400  # lines
_SHOWN = 5  # rows before the header
_NUMBER = re.compile(r"[-+]?[\d.,:/ %-]*\d[\d.,:/ %-]*")
_TOTAL = re.compile(
    r"\W*(((sub|grand|sub-|zwischen)\s?)?tot(al|ais|als|ales|ali|ale|aal|aux)( geral| general| général)?"
    r"|(gesamt)?summe|gesamt|som(me|a)|suma|итого|всего|合計|总计|合计|합계|المجموع)\W*",
    re.IGNORECASE,
)

Line = tuple[int, list[str]]  # number of the first line, and the fields
L = TypeVar("L")


def sample(lines: Iterator[L], size: Callable[[L], int]) -> list[L]:
    """The first lines, by which a table is recognised."""
    found, total = list[L](), 0
    for line in itertools.islice(lines, SAMPLE):
        found.append(line)
        total += size(line)
        if total > SAMPLE_CHARACTERS:
            break
    return found


def usual_width(widths: list[int]) -> tuple[int, int]:
    """The most frequent width, and how many rows have it; one column only where no row has more."""
    counts = Counter(width for width in widths if width > 1) or Counter(widths)
    return max(counts.items(), key=lambda item: (item[1], item[0]))


def records(lines: Iterator[Line], name: str, notes: Notes, padded: bool) -> Iterator[Record | Rejected]:
    """Records of the lines below the header; others are rejected. `padded`: short rows lack empty cells at their
    end."""
    start = sample(lines, lambda line: sum(map(len, line[1])))
    if not start:
        return
    if (widest := max(len(row) for _, row in start)) > COLUMNS:
        raise DataError(f"{name} has {counted(widest, 'column')}, {COLUMNS:,} are read", "check what separates them")
    width, _ = usual_width([len(row) for _, row in start])
    width = max(width, max((len(row) for _, row in start[:1]), default=0)) if padded else width
    first = next((i for i, (_, row) in enumerate(start) if len(row) == width), 0)
    if first:
        titles = [" ".join(filter(None, row))[:60] for _, row in start[:first]]
        said = f"{counted(first, 'row')} left out before the header: {enumerated(list(map(repr, titles)), _SHOWN)}"
        rows = tuple(f"{name}:{number}" for number, _ in start[:first][:_SHOWN])
        notes.tell(Told("before header", f"{name}: {said}", {"titles": titles[:_SHOWN]}, first, rows))
    header, body = start[first][1], start[first + 1 :]
    if _is_header(header, body):
        names = _column_names(header, name, notes)
    else:
        names = [f"column_{i}" for i in range(1, width + 1)]
        notes.say(f"{name} has no header: its columns are called {enumerated(names)}")
        body = start[first:]
    rejected = 0  # one after another
    for number, row in itertools.chain(body, lines):
        location = f"{name}:{number}"
        cells = row + [""] * (width - len(row)) if padded else row
        if len(cells) > width and not any(cells[width:]):
            cells = cells[:width]
        if len(cells) == width:
            rejected = 0
            if _is_total(cells):
                reason = f"it looks like a total, not like a row: {' '.join(cells)[:60]!r}"
                yield Rejected(location, reason, meant=False)
                continue
            yield Record(dict(zip(names, cells, strict=True)), location)
        else:
            rejected += 1
            yield Rejected(location, f"{counted(len(cells), 'field')}, the header has {width}")
    if rejected > 1:
        notes.say(f"{name}: the last {rejected} lines are not rows but a footer, which is left out")


def _is_total(cells: list[str]) -> bool:
    """Whether a row says 'total' first, and then only numbers."""
    given = [cell.strip() for cell in cells if cell.strip()]
    return len(given) > 1 and bool(_TOTAL.fullmatch(given[0])) and all(map(_NUMBER.fullmatch, given[1:]))


def _is_header(row: list[str], body: list[Line]) -> bool:
    """Whether a first row names columns: short, no numbers, nothing that is a value of its column below."""
    if any(len(cell) > 100 or _NUMBER.fullmatch(cell.strip()) for cell in row) or not any(cell.strip() for cell in row):
        return False
    columns = [{other[i].strip() for _, other in body if len(other) == len(row)} for i in range(len(row))]
    return not any(cell.strip() and cell.strip() in column for cell, column in zip(row, columns, strict=True))


def _column_names(header: list[str], name: str, notes: Notes) -> list[str]:
    names = dict[str, None]()
    changed = dict[str, list[str]]()  # by the reason
    numbers: dict[str, int] = {}  # the last that was tried, of each name
    for i, cell in enumerate(header, 1):
        wanted = unique = cell.strip() or f"column_{i}"
        while unique in names:
            numbers[wanted] = numbers.get(wanted, 1) + 1
            unique = f"{wanted}_{numbers[wanted]}"
        if unique != cell.strip():
            why = "a duplicate" if cell.strip() else "empty"
            changed.setdefault(why, []).append(f"column {i} is called {unique!r}")
        names[unique] = None
    for why, columns in changed.items():
        which = "its header is" if len(columns) == 1 else "their headers are"
        what = why if len(columns) == 1 else why.replace("a duplicate", "duplicates")
        notes.say(f"{name}: {enumerated(columns)}, because {which} {what}")
    return list(names)
