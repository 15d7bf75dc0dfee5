"""The likeliest reading of a table as settings, and what is told of its columns where no layout is known."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afina.core.errors import Unmapped, counted
from afina.data.roles.columns import Column, Nature
from afina.data.roles.opening import columns_of
from afina.data.roles.table import Reading, Table
from afina.data.roles.tasks import TASKS, Task

_ENOUGH = 1.3  # points below which nothing is suggested
_AHEAD = 0.35  # of the next reading that learns something else
_COMPARED = 16  # columns of a wide table, each with each: a table of 300 texts would take an hour
_SHOWN, _WIDTH = 20, 50  # columns that are listed, and characters of an example
_NATURES: dict[Nature, str] = {
    "empty": "nothing",
    "constant": "one value in every row",
    "conversation": "messages",
    "number": "numbers",
    "date": "dates",
    "address": "addresses",
    "identifier": "identifiers",
    "split": "parts of a split",
    "list": "lists of short texts",
    "structured": "JSON",
    "unnameable": "a name that no template can hold: rename it",
}


@dataclass(frozen=True)
class Suggestion:
    """`settings` of data by name, the kind of `task` that they are for, and the `reason`."""

    task: str
    settings: dict[str, str]
    reason: str


def suggest(rows: Sequence[dict[str, Any]]) -> Suggestion | None:
    """What is probably asked and answered in rows such as these; None where the evidence is weak."""
    return _suggest(columns_of(rows))


def unmapped(path: Path, rows: Sequence[dict[str, Any]]) -> Unmapped:
    """The error for a file whose columns' names do not say it, with what the values say."""
    columns = columns_of(rows)
    found = _suggest(columns)
    width = max((len(repr(column.name)) for column in columns[:_SHOWN]), default=0)
    lines = [f"{column.name!r:{width}}  {_described(column)}" for column in columns[:_SHOWN]]
    if len(columns) > _SHOWN:
        lines.append(f"and {len(columns) - _SHOWN} columns more")
    problem = f"{path}: the names of its columns do not say what is asked and what is answered"
    if found is None:
        shape = {"prompt": "{COLUMN}", "completion": "{COLUMN}"}
        return Unmapped(f"{problem}, and neither do their values", columns=lines, mapping=shape)
    problem = f"{problem}. Likeliest: {found.task}, {found.reason}"
    return Unmapped(problem, columns=lines, mapping=found.settings, task=found.task)


def ranked(table: Table) -> list[tuple[Task, Reading]]:
    """Every reading of a table, the likeliest first."""
    found = [(task, reading) for task in TASKS for reading in task.readings(table)]
    return sorted(found, key=lambda each: -each[1].points)


def _compared(columns: Sequence[Column]) -> Sequence[Column]:
    """Those that may be asked or answered; in a wide table at most `_COMPARED`, the ones with telling names first."""
    if len(columns) <= _COMPARED:
        return columns
    able = [column for column in columns if column.nature in ("conversation", "label", "list", "structured", "text")]
    kept = sorted(able, key=lambda column: column.meaning is None)[:_COMPARED]
    return [column for column in able if column in kept]


def _suggest(columns: Sequence[Column]) -> Suggestion | None:
    table = Table(_compared(columns))
    found = ranked(table)
    if not found:
        return None
    task, best = _joined(table, found)
    rivals = (
        reading
        for _, reading in found[1:]
        if reading.answer not in (best.answer, *best.references) or not {*reading.inputs} & {*best.inputs}
    )
    rival = next(rivals, None)
    if best.points < _ENOUGH or (rival and best.points - rival.points < _AHEAD):
        return None
    return Suggestion(task.name, _settings(task, best), _reason(best))


def _joined(table: Table, found: Sequence[tuple[Task, Reading]]) -> tuple[Task, Reading]:
    """The best reading; where others are as good that only ask with another column, it asks with all of them."""
    task, best = found[0]
    for other, reading in found[1:]:
        more = [each for each in reading.inputs if each not in best.inputs]
        if (
            task.joins
            and other is task
            and reading.answer is best.answer
            and best.points - reading.points < _AHEAD
            and not any(table.is_copy(one, each) for one in more for each in best.inputs)
        ):
            best.inputs = [each for each in table.columns if each in best.inputs or each in more]
    return task, best


def _settings(task: Task, reading: Reading) -> dict[str, str]:
    if reading.answer.nature == "conversation":
        return {"map": f"messages={reading.answer.name}"}
    optional = len(reading.inputs) > 1
    inputs = [f"{{{each.name}{'?' * (optional and each.optional)}}}" for each in reading.inputs]
    settings = {"prompt": reading.asking + "\n\n".join(inputs), "completion": f"{{{reading.answer.name}}}"}
    if len(reading.references) > 1 and not any("," in each.name for each in reading.references):
        settings["references"] = ",".join(each.name for each in reading.references)
    elif reading.answer.among:
        settings["references"] = reading.answer.among
    return settings | ({"kind": task.kind} if task.kind else {})


def _reason(reading: Reading) -> str:
    asked = " and ".join(repr(column.name) for column in reading.inputs)
    pair = f"{asked} → {reading.answer.name!r}" if asked else repr(reading.answer.name)
    return f"{pair}: {', '.join(dict.fromkeys(reading.reasons))}"


def _described(column: Column) -> str:
    """What the values are like, and the first of them."""
    if column.nature == "label":
        what = counted(len(column.distinct), "value")
    elif column.nature == "text":
        length = statistics.median(map(len, column.given))
        what = f"{'code' if column.is_code else 'texts'} of about {length:.0f} characters"
    else:
        what = _NATURES[column.nature]
    first = " ".join(column.given[0].split()) if column.given else ""
    example = first if len(first) <= _WIDTH else f"{first[: _WIDTH - 1]}…"
    return f"{what}, such as {example!r}" if example else what
