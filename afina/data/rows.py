"""What reading gives: rows that know where they stand, those that cannot be used, and what is to be said of the files."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from afina.data.layouts import Layout


@dataclass(frozen=True)
class Record:
    """One row of a file; `where` is 'file:line' (of a JSON list 'file, item n')."""

    values: dict[str, Any]
    where: str


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be used, and why."""

    where: str
    reason: str


class Reasons:
    """Why rows cannot be used: how many for each reason, and the first places."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._places: dict[str, list[str]] = {}

    def add(self, row: Rejected) -> None:
        self._counts[row.reason] += 1
        places = self._places.setdefault(row.reason, [])
        if len(places) < 3:
            places.append(row.where)

    def lines(self) -> list[str]:
        """A line a reason, the most frequent first."""
        return [
            f"{n} row{'s' * (n > 1)}: {reason} ({', '.join(self._places[reason])}{', …' * (n > 3)})"
            for reason, n in self._counts.most_common()
        ]


@dataclass
class Notes:
    """What was found out about files while they were read, each said once; and the layout that their rows were taken for."""

    layout: Layout | None = None
    lines: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        if line not in self.lines and len(self.lines) < 100:
            self.lines.append(line)
