"""`data preview`: the first rows of DATA, its columns, and what would be asked and answered."""

import json
from contextlib import suppress
from itertools import islice
from typing import Any, Literal

from afina.core.config import Result, Settings, section, setting
from afina.core.errors import DataError
from afina.core.events import Listener, Notice, ignore
from afina.core.job import Job
from afina.data.layouts import recognise
from afina.data.mapping import ColumnTemplate, Unusable
from afina.data.read import read
from afina.data.roles.suggestion import suggest
from afina.data.rows import Notes, Record, Rejected
from afina.data.settings import DataSettings
from afina.jobs.data._tokenizer import READING

_LOOKED_AT = 300  # rows by which the mapping is guessed
_CELL = 500  # characters of a value that are shown


class PreviewDataSettings(Settings):
    rows: int = setting(10, metavar="N", ge=1, le=1000)
    """How many rows are shown."""
    data: DataSettings = section(only=READING)


class PreviewDataResult(Result):
    path: str
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    """Of each row its `location` under "", and by column each value as people read it: the items of a list, the names
    and values of an object."""
    rejected: tuple[tuple[str, str], ...]
    """Location and reason of what cannot be read among the rows that were looked at."""
    mapping: dict[str, str]
    """Settings of data that say what is asked and answered: prompt, completion, map, kind."""
    known_by: Literal["given", "names", "values", "nothing"]
    """Whether the mapping was given, is told by the columns' names, likely by their values, or neither tells it."""
    reason: str
    asked: str
    answered: str
    """The first row as the mapping has it asked and answered, where its templates say so."""


def preview(settings: PreviewDataSettings, listener: Listener = ignore) -> PreviewDataResult:
    """Reads a few rows. Raises `DataError` where the file cannot be read."""
    data, notes = settings.data, Notes(doubts=[])
    found = list(islice(read(data, notes), max(_LOOKED_AT, settings.rows)))
    for line in notes.lines:
        listener(Notice(line))
    records = [row for row in found if isinstance(row, Record)]
    if not found:
        raise DataError(f"data {data.path} is empty: it holds no example", "give a file with at least one")
    values = [row.values for row in records]
    columns = tuple(dict.fromkeys(name for row in values for name in row))
    mapping, known_by, reason = _mapping(data, columns, values)
    asked, answered = _first(mapping, values)
    return PreviewDataResult(
        path=str(data.path),
        columns=columns,
        rows=tuple(_shown(row) for row in records[: settings.rows]),
        rejected=tuple((row.location, row.reason) for row in found if isinstance(row, Rejected)),
        mapping=mapping,
        known_by=known_by,
        reason=reason,
        asked=asked,
        answered=answered,
    )


def _shown(row: Record) -> dict[str, str]:
    return {"": row.location} | {name: _read(value)[:_CELL] for name, value in row.values.items()}


def _read(value: Any) -> str:
    """A value as people read it; nothing where there is none."""
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_read(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_read, value))
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _first(mapping: dict[str, str], values: list[dict[str, Any]]) -> tuple[str, str]:
    if not {"prompt", "completion"} <= mapping.keys():
        return "", ""
    prompt, completion = (ColumnTemplate(mapping[name], f"--{name}") for name in ("prompt", "completion"))
    for row in values:
        with suppress(Unusable):
            return prompt.fill(row)[:_CELL], completion.fill(row)[:_CELL]
    return "", ""


def _mapping(
    data: DataSettings, columns: tuple[str, ...], values: list[dict[str, Any]]
) -> tuple[dict[str, str], Literal["given", "names", "values", "nothing"], str]:
    given = {name: getattr(data, name) for name in ("prompt", "completion", "map", "system") if getattr(data, name)}
    if given:
        return given, "given", ""
    layout = recognise(columns, values)
    if layout is not None:
        found = {"prompt": layout.prompt, "completion": layout.completion, "kind": layout.kind}
        return {name: text for name, text in found.items() if text}, "names", layout.words()
    likely = suggest(values)
    if likely is not None:
        return likely.settings, "values", f"{likely.task}: {likely.reason}"
    return {}, "nothing", "say it with --prompt '{COLUMN}' --completion '{COLUMN}'"


JOB = Job.of(preview)
