"""What reading gives: rows that know where they stand, those that cannot be used, and what is to be said of the files."""

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


@dataclass
class Notes:
    """What was found out about files while they were read, each said once; and the layout that their rows were taken for."""

    layout: Layout | None = None
    lines: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        if line not in self.lines and len(self.lines) < 100:
            self.lines.append(line)
