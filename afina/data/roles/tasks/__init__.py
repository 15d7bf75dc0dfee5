"""Kinds of task, a module for each: to add one is to add a module with a `TASK`.

Comes in: a `Table`. Goes out: every way in which the table may be read as this kind of task, with the evidence.
Public: `Task` (what a module declares), `TASKS` (the table)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from afina.core.registry import Registry
from afina.data.layouts import Kind
from afina.data.roles.table import Reading, Table


@dataclass(frozen=True)
class Task:
    """`name` is what people call it; `kind` how its answers are scored, where the answers alone do not say
    so. It `joins` inputs where several columns may be the one that is asked about."""

    name: str
    readings: Callable[[Table], Iterator[Reading]]
    kind: Kind | None = None
    joins: bool = False


TASKS: Registry[Task] = Registry("afina.data.roles.tasks", "TASK", "kind of task")
