"""Response generation from whole conversations: one column of messages, whatever it is called."""

from collections.abc import Iterator

from afina.data.roles.table import Reading, Table
from afina.data.roles.tasks import Task

_POINTS = 3.0  # nothing else looks like it


def _readings(table: Table) -> Iterator[Reading]:
    for column in table.of("conversation"):
        if not set(column.name) & set(",="):  # which --map divides
            yield Reading([], column, _POINTS, ["it holds messages"])


TASK = Task("conversation", _readings, "chat")
