"""What reading gives: rows that know their location, those that cannot be used, and what was found out about the
files."""

import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afina.core.errors import DataError, counted
from afina.data.layouts import Layout

_NUMBERED = re.compile(r"(.*?)(0|[1-9]\d{0,8})", re.DOTALL)
_NO_NUMBER = 2**32 - 1
_MOST_NOTES = 100
_SHOWN = 5  # locations


@dataclass(frozen=True)
class Record:
    """One row of a file, its values by column; `location` is 'file:line' (of a JSON list 'file, item n', of a table
    'file, row n')."""

    values: dict[str, Any]
    location: str


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be used, and why. One that is not `meant` to be used is left out by what the file says of
    it."""

    location: str
    reason: str
    meant: bool = True


class Locations:
    """The locations of rows in eight bytes per row: a number for what a location begins with (its file), and the number
    it ends with."""

    def __init__(self) -> None:
        self._prefixes: dict[str, int] = {}
        self._which, self._numbers = array("I"), array("I")

    def add(self, location: str) -> None:
        prefix, number = self.encode(location)
        self._which.append(prefix)
        self._numbers.append(number)

    def encode(self, location: str) -> tuple[int, int]:
        """The number of what it begins with, and the number it ends with."""
        match = _NUMBERED.fullmatch(location)
        prefix, number = (match[1], int(match[2])) if match else (location, _NO_NUMBER)
        return self._prefixes.setdefault(prefix, len(self._prefixes)), number

    def prefixes(self) -> list[str]:
        return list(self._prefixes)

    def __getitem__(self, row: int) -> str:
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        return decode(self.prefixes()[self._which[row]], self._numbers[row])

    def __len__(self) -> int:
        return len(self._which)

    def __iter__(self) -> Iterator[str]:
        prefixes = self.prefixes()
        return (decode(prefixes[which], number) for which, number in zip(self._which, self._numbers, strict=True))


def decode(prefix: str, number: int) -> str:
    """The location that `Locations.encode` encoded."""
    return prefix if number == _NO_NUMBER else f"{prefix}{number}"


def placed(location: str, path: Path) -> str:
    """A row's location from the folder in which `path`, its data, lies: the same from wherever a run is resumed, and
    without the names of the folders above it."""
    return os.path.relpath(location, path.absolute().parent)


class Rejections:
    """Rows that cannot be used, in their order: twelve bytes per row, and every reason once."""

    def __init__(self, rows: Iterable[Rejected] = ()) -> None:
        self._locations = Locations()
        self._reasons: dict[str, int] = {}
        self._which = array("I")
        for row in rows:
            self.add(row)

    def add(self, row: Rejected) -> None:
        self._locations.add(row.location)
        self._which.append(self._reasons.setdefault(row.reason, len(self._reasons)))

    def __len__(self) -> int:
        return len(self._which)

    def __iter__(self) -> Iterator[Rejected]:
        reasons = list(self._reasons)
        for location, which in zip(self._locations, self._which, strict=True):
            yield Rejected(location, reasons[which])

    def lines(self) -> list[str]:
        """One line per reason, the most frequent first, each with its count and its first locations."""
        return [f"{counted(n, 'row')}: {reason}" for reason, n in self.counts().items()]

    def counts(self) -> dict[str, int]:
        """How many rows each reason has, the most frequent first; each reason with its first locations."""
        counts: Counter[str] = Counter()
        locations: dict[str, list[str]] = {}
        for row in self:
            counts[row.reason] += 1
            if counts[row.reason] <= 3:
                locations.setdefault(row.reason, []).append(row.location)
        return {f"{reason} ({', '.join(locations[reason])}{', …' * (n > 3)})": n for reason, n in counts.most_common()}


class Few:
    """A count, and the first locations."""

    def __init__(self) -> None:
        self.count, self.rows = 0, list[str]()

    def add(self, location: str) -> None:
        self.count += 1
        if len(self.rows) < _SHOWN:
            self.rows.append(location)


class Flaw(Few):
    """Something that deserves a look: rows, what is wrong with them, and the remedy. `values` are those that were found
    in the rows, counted; fewer than `least` different ones are no flaw."""

    def __init__(self, text: str, least: int) -> None:
        super().__init__()
        self.text, self.least = text, least
        self.values: Counter[str] = Counter()

    def __str__(self) -> str:
        values = ", ".join(f"{value} {n}" for value, n in self.values.items())
        return f"{counted(self.count, 'row')}: {self.text}" + (f" ({values})" if values else "")


@dataclass(frozen=True)
class Told:
    """A `line` on a file, with a `code` and what it names, for who says it in other words: how many rows it is about,
    the first of them by location, and other `facts`."""

    code: str
    line: str
    facts: dict[str, Any]
    count: int = 0
    rows: tuple[str, ...] = ()


class Notes:
    """What was found out about files while they were read, and the layout that was recognised.

    What makes it doubtful that a file is read rightly is an error, but where `doubts` collects it."""

    def __init__(self, doubts: list[tuple[str, str]] | None = None) -> None:
        self.layout: Layout | None = None
        self.doubts = doubts
        self._said: list[str] = []
        self._counts: Counter[str] = Counter()
        self._flaws: dict[tuple[str, str], Flaw] = {}
        self._told: dict[str, Told] = {}
        self._more = False  # than are kept

    def say(self, *lines: str) -> None:
        """Keeps each line, once."""
        for line in lines:
            if line in self._said:
                continue
            if len(self._said) < _MOST_NOTES:
                self._said.append(line)
            else:
                self._more = True

    def tell(self, told: Told) -> None:
        """Keeps a line with what it names."""
        self.say(told.line)
        self._told[told.line] = told

    def doubt(self, problem: str, remedy: str, code: str) -> None:
        """Raises `DataError` where nobody collects doubts (each a code and a text)."""
        if self.doubts is None:
            raise DataError(problem, remedy)
        self.doubts.append((code, f"{problem}: {remedy}"))

    def count(self, lines: Iterable[str]) -> None:
        """Keeps what was found in one row; each line is shown once, with the number of rows."""
        for line in dict.fromkeys(lines):
            if line in self._counts or len(self._counts) < _MOST_NOTES:
                self._counts[line] += 1
            else:
                self._more = True

    def warn(self, code: str, text: str, location: str, value: str | None = None, least: int = 0) -> None:
        """Keeps a flaw of one row, by its code and text; of a `value` how often it was found."""
        flaw = self._flaws.get((code, text))
        if flaw is None:
            if len(self._flaws) == _MOST_NOTES:
                self._more = True
                return
            flaw = self._flaws[code, text] = Flaw(text, least)
        flaw.add(location)
        if value is not None and (value in flaw.values or len(flaw.values) < _MOST_NOTES):
            flaw.values[value] += 1

    @property
    def flaws(self) -> list[tuple[str, Flaw]]:
        """Those that were found, each with its code."""
        return [(code, flaw) for (code, _), flaw in self._flaws.items() if len(flaw.values) >= flaw.least]

    @property
    def told(self) -> list[Told]:
        """Those of the lines of which it is known what they name."""
        return [self._told[line] for line in self._said if line in self._told]

    def clear(self) -> None:
        self._flaws.clear()
        self._told.clear()
        self._more = False
        self._said.clear()
        self._counts.clear()

    @property
    def lines(self) -> list[str]:
        more = [f"more was found than the first {_MOST_NOTES} notes of a kind say"] if self._more else []
        counts = (f"{line} ({counted(n, 'row')})" for line, n in self._counts.items())
        return [*self._said, *counts, *(str(flaw) for _, flaw in self.flaws), *more]
