"""Text with columns of a record in it."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from afina.core.errors import DataError, near, shortened
from afina.core.limits import COLUMN_TEMPLATE_FIELDS, RECORD_CHARACTERS
from afina.data.mapping.example import Unusable
from afina.data.quality.signals import says_nothing
from afina.data.settings import DataSettings

_FIELD = re.compile(r"\{\{|\}\}|\{([^{}\[\]]+)((?:\[[^\[\]{}]*\])*)\}|[{}]")
_MARK = re.compile(r"([A-Za-z]|\d{1,3})([.):]\s?)")  # in brackets: that of the first item
_JOINT = re.compile(r"\W+|\s.*|.*\s", re.DOTALL)  # in brackets: no index and no key


def text_of(value: Any) -> str:
    """A column as text: strings as they are, a list of strings joined by spaces, anything else as JSON.

    Raises `Unusable` for NaN and Infinity, which stand for a missing value and are no JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return " ".join(value)
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise Unusable("a value that is used is NaN or Infinity, which is no number") from None


class ColumnTemplate:
    """Text with `{column}`, `{column[0]}`, `{column[key]}`, `{column[, ]}` (a list, joined by what stands in the
    brackets), `{column[A. ]}` or `{column[1) ]}` (a list, each item after its mark on a line of its own) or
    `{column?}`, which may be empty, in it. Where a list is expected, anything else is a list of one.

    Raises `DataError` where it is malformed.
    """

    def __init__(self, text: str, flag: str) -> None:
        self.flag = flag
        self.parts: list[str | tuple[str, list[str]]] = []
        end = 0
        for match in _FIELD.finditer(text):
            self.parts.append(text[end : match.start()])
            end = match.end()
            if match[0] in ("{{", "}}"):
                self.parts.append(match[0][0])
            elif match[1]:
                self.parts.append((match[1].strip(), re.findall(r"\[([^\]]*)\]", match[2] or "")))
            else:
                raise DataError(
                    f"{flag} {shortened(text, 300)}: the brace at position {match.start() + 1} has no partner",
                    "write a column as {name} and a literal brace as {{ or }}",
                )
        self.parts.append(text[end:])
        fields = sum(isinstance(part, tuple) for part in self.parts)
        if fields > COLUMN_TEMPLATE_FIELDS:
            problem = (
                f"{flag} names {fields:,} columns, with those that come again; {COLUMN_TEMPLATE_FIELDS:,} are read"
            )
            raise DataError(problem, "name each column once")
        self.columns = list(dict.fromkeys(part[0] for part in self.parts if isinstance(part, tuple)))
        if not self.columns:
            raise DataError(
                f"{flag} {shortened(text, 300)} names no column", "write a column's name in braces, such as {text}"
            )

    def fill(self, values: dict[str, Any]) -> str:
        texts, size = [], 0
        for part in self.parts:
            texts.append(part if isinstance(part, str) else text_of(self._value(part, values)))
            size += len(texts[-1])
            if size > RECORD_CHARACTERS:
                raise Unusable(f"{self.flag} makes more than {RECORD_CHARACTERS:,} characters of it")
        filled = "".join(texts)
        return filled.strip() if any(name.endswith("?") for name in self.columns) else filled

    def source(self, values: dict[str, Any]) -> str:
        return " ".join(text_of(self._value(p, values)) for p in self.parts if isinstance(p, tuple))

    def holes(self, values: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """The columns that hold nothing, or only what stands for it ('N/A'), and what stands there."""
        for part in self.parts:
            if isinstance(part, tuple) and not part[0].endswith("?"):
                text = text_of(self._value(part, values)).strip()
                if not text or says_nothing(text):
                    yield part[0], text

    def names(self, column: str) -> bool:
        """Whether it takes the column in."""
        return column in self.columns or f"{column}?" in self.columns

    def require(self, columns: Sequence[str], settings: DataSettings) -> None:
        """Raises `DataError` for columns that it names and no row has."""
        require([name for name in self.columns if not name.endswith("?")], columns, self.flag, settings)

    def _value(self, part: tuple[str, list[str]], values: dict[str, Any]) -> Any:
        name, keys = part
        if name.endswith("?") and name not in values:
            return "" if values.get(name[:-1]) is None else values[name[:-1]]
        if values.get(name) is None:
            raise Unusable(f"column {name!r} is missing or null")
        value = values[name]
        for key in keys:
            try:
                value = _item(value, key)
            except (LookupError, ValueError, TypeError):
                raise Unusable(f"column {name!r} has no item [{key}]") from None
        return value


def _item(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        return value[key]
    listed = value if isinstance(value, list) else [value]
    if first := _MARK.fullmatch(key):
        return "\n".join(f"{_counted(first[1], i)}{first[2]}{text_of(item)}" for i, item in enumerate(listed))
    return key.join(text_of(item) for item in listed) if _JOINT.fullmatch(key) else listed[int(key)]


def _counted(first: str, number: int) -> str:
    """What follows the mark `first` after so many others."""
    return str(int(first) + number) if first.isdigit() else chr(ord(first) + number)


def require(wanted: Sequence[str], columns: Sequence[str], flag: str, settings: DataSettings) -> None:
    """Raises `DataError` for wanted columns that no row has."""
    absent = [name for name in wanted if name not in columns]
    if absent:
        raise DataError(
            [f"{settings.path}: no column {name!r}, which {flag} names.{near(name, columns)}" for name in absent],
            f"the columns are {', '.join(map(repr, columns))}",
        )
