"""What reading gives: rows that know where they stand, those that cannot be used, and what is to be said of the files."""

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from afina.data.layouts import Layout

_PLACE = re.compile(r"(.*?)(0|[1-9]\d{0,8})", re.DOTALL)
_NO_NUMBER = 2**32 - 1


@dataclass(frozen=True)
class Record:
    """One row of a file; `where` is 'file:line' (of a JSON list 'file, item n')."""

    values: dict[str, Any]
    location: str


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be used, and why."""

    location: str
    reason: str


class Places:
    """Where rows stand, eight bytes each: what their places begin with, and a number."""

    def __init__(self) -> None:
        self._prefixes: dict[str, int] = {}
        self._which, self._numbers = array("I"), array("I")

    def add(self, where: str) -> None:
        prefix, number = self.parts(where)
        self._which.append(prefix)
        self._numbers.append(number)

    def parts(self, where: str) -> tuple[int, int]:
        """The place as the number of what it begins with, and its own."""
        match = _PLACE.fullmatch(where)
        prefix, number = (match[1], int(match[2])) if match else (where, _NO_NUMBER)
        return self._prefixes.setdefault(prefix, len(self._prefixes)), number

    def prefixes(self) -> list[str]:
        return list(self._prefixes)

    def __getitem__(self, row: int) -> str:
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        return place(self.prefixes()[self._which[row]], self._numbers[row])

    def __len__(self) -> int:
        return len(self._which)


def place(prefix: str, number: int) -> str:
    """The place that `Places.parts` took apart."""
    return prefix if number == _NO_NUMBER else f"{prefix}{number}"


class Rejections:
    """Rows that cannot be used, in their order: twelve bytes each, and every reason once."""

    def __init__(self, rows: Iterable[Rejected] = ()) -> None:
        self._places = Places()
        self._reasons: dict[str, int] = {}
        self._which = array("I")
        for row in rows:
            self.add(row)

    def add(self, row: Rejected) -> None:
        self._places.add(row.location)
        self._which.append(self._reasons.setdefault(row.reason, len(self._reasons)))

    def __len__(self) -> int:
        return len(self._which)

    def __iter__(self) -> Iterator[Rejected]:
        reasons, prefixes = list(self._reasons), self._places.prefixes()
        for which, prefix, number in zip(self._which, self._places._which, self._places._numbers, strict=True):
            yield Rejected(place(prefixes[prefix], number), reasons[which])

    def lines(self) -> list[str]:
        """A line a reason, the most frequent first, each with its count and its first places."""
        return [f"{n} row{'s' * (n > 1)}: {reason}" for reason, n in self.counts().items()]

    def counts(self) -> dict[str, int]:
        """How many rows each reason has, the most frequent first; beside the reason its first places."""
        counts: Counter[str] = Counter()
        places: dict[str, list[str]] = {}
        for row in self:
            counts[row.reason] += 1
            if counts[row.reason] <= 3:
                places.setdefault(row.reason, []).append(row.location)
        return {f"{reason} ({', '.join(places[reason])}{', …' * (n > 3)})": n for reason, n in counts.most_common()}


@dataclass
class Notes:
    """What was found out about files while they were read, each said once; and the layout that their rows were taken for."""

    layout: Layout | None = None
    lines: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        if line not in self.lines and len(self.lines) < 100:
            self.lines.append(line)
