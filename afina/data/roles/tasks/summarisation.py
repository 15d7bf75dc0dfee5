"""Summarisation: a text much shorter than the one whose words it takes up, headlines among them."""

import math
from collections.abc import Iterator

from afina.data.roles.table import Reading, Table
from afina.data.roles.tasks import Task

_SHORTER = 0.6  # of its source's length, at most
_FOURTH = 4  # of its source's length tells all that length can tell
_WORDS = 4  # fewer are a name, not a summary
_COVERED = 0.35  # of all its words stand in the source, at least: a reply takes up the name of a thing or two
_TAKEN = 0.15  # of its words from the source, beyond chance, at least


def _readings(table: Table) -> Iterator[Reading]:
    asked = any(column.asks > 0.5 for column in table.sentences)
    for source in table.sentences:
        for summary in table.answers("text"):
            pair = table.relation(source, summary)
            if (
                source is summary
                or (summary.is_code and not source.is_code)
                or source.asks > 0.5
                or pair.ratio > _SHORTER
                or summary.words < _WORDS
                or summary.asks > 0.5
            ):
                continue
            if pair.held < _TAKEN and summary.meaning != "summary":
                continue
            found = Reading([source], summary, asking="Summarise: ")
            found.add(
                0.2 + 0.8 * min(1.0, math.log(1 / pair.ratio, _FOURTH)),
                f"it is {1 / pair.ratio:.0f} times shorter than {source.name!r}",
            )
            found.add(pair.held, f"its words are those of {source.name!r}")
            found.add(0.3 if table.after(source, summary) else -0.3)
            found.add(-0.5 if pair.shared / pair.ratio < _COVERED else 0.0)
            found.add(-0.5 if asked else 0.0)  # by the question of another column, more likely
            found.names(summary=1.2, reference=0.8, answer=0.6, title=-0.2)
            found.add(-table.feeds(summary))
            found.references = [each for each in table.siblings(summary) if each is not source]
            yield found


TASK = Task("summarisation", _readings, "summarisation")
