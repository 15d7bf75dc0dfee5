"""The columns of rows, those that lie in objects among them."""

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

from afina.data.roles.columns import Column
from afina.data.roles.relation import relation

_ROWS = 300  # that are looked at, in no order that labels could follow
_FEW, _CELLS = 10, 100_000  # of very wide tables fewer rows, but some
_APART = {"text", "question", "context", "answer", "summary"}  # what the members of an object may be beside each other
_SENTENCE = 4  # words
_ALIKE = 0.15  # of an answer's words that stand in another way to answer, beyond chance
_TEXTS = 16  # that an object is compared with
_DRAWN = 0.3  # of an object's details that stand in another column's text, beyond chance


def columns_of(rows: Sequence[dict[str, Any]]) -> list[Column]:
    """The columns of rows, those inside of objects among them."""
    looked_at = min(_ROWS, max(_FEW, _CELLS // max(1, *map(len, rows), 1)), len(rows))
    rows = [rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), looked_at))]
    names = list(dict.fromkeys(name for row in rows for name in row))
    whole = [Column(name, tuple(row.get(name) for row in rows)) for name in names]
    return list(_opened(whole))


def _opened(columns: Sequence[Column]) -> Iterator[Column]:
    """The columns, with the members of an object in its place where they are texts of their own: what is asked and what
    is answered may lie in one object. An object whose details stand in another column is an answer as a whole, and one
    of mere details a context."""
    for column in columns:
        members = _members(column)
        useful = [each for each in members if each.meaning != "nothing to learn"]
        apart = any(each.meaning in _APART and each.nature == "text" and each.words >= _SENTENCE for each in useful)
        alone = len(columns) == 1 or len(useful) == 1
        if (first := _first(column)) is not None:
            yield first
        elif members and (alone or (apart and not _is_drawn(column, columns))):
            yield from _opened(members)
        else:
            yield column


def _is_drawn(column: Column, columns: Sequence[Column]) -> bool:
    texts = (each for each in columns if each is not column and each.nature == "text")
    return any(relation(text, column).held > _DRAWN for text in itertools.islice(texts, _TEXTS))


def _first(column: Column) -> Column | None:
    """The first text of each list, where the others of the list say the same: they are ways to answer."""
    lists = [value for value in column.values if value]
    if not lists or not all(
        isinstance(value, list) and all(isinstance(item, str) for item in value) for value in lists
    ):
        return None
    first, second = (
        Column(
            f"{column.name}[{i}]",
            tuple(value[i] if value and len(value) > i else None for value in column.values),
            column.name,
        )
        for i in (0, 1)
    )
    alike = _ALIKE if column.meaning in ("answer", "reference", "summary") else 2 * _ALIKE
    return first if not second.given or relation(second, first).held > alike else None


def _members(column: Column) -> list[Column]:
    """Of objects that all have the same keys, one column each."""
    given = [value for value in column.values if value is not None]
    if not given or not all(isinstance(value, dict) for value in given):
        return []
    keys = [key for key in given[0] if all(key in value for value in given)]
    if len(keys) < max(map(len, given)):
        return []
    return [
        Column(f"{column.name}[{key}]", tuple(value and value[key] for value in column.values))
        for key in keys
        if not re.search(r"[\[\]{}]", key)
    ]
