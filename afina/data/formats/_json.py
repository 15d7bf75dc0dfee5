"""What the two formats of JSON share: a value from text, and a row from a value."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from afina.data.rows import Record, Rejected

_NAMES = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number", dict: "an object"}


def parse(text: str) -> Any:
    """Raises `ValueError` where `text` is not JSON, or nested too deeply."""
    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def refuse(name: str) -> None:
    """For NaN and Infinity, which Python's parser takes and JSON does not know."""
    raise ValueError(f"{name} is not a JSON number")


def row_of(value: Any, location: str) -> Record | Rejected:
    """An object's members are the columns; anything else is not a row."""
    if isinstance(value, dict):
        return Record(value, location)
    return Rejected(location, f"it holds {noun(value)}, expected an object with named columns")


def rows_of(lines: Iterable[str], name: str) -> Iterator[Record | Rejected]:
    """One object per line; empty lines are passed over."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            location = f"{name}:{number}"
            try:
                yield row_of(parse(line), location)
            except ValueError as error:
                yield Rejected(location, f"not JSON ({error})")


def noun(value: Any) -> str:
    """What kind of value it is, in words."""
    return _NAMES.get(type(value), "null")
