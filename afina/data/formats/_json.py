"""JSON however it is written: a list, an object a line, a stream of objects, or one object that holds the rows.

What a file is shows in its first lines; its name only says what a single object in it is, a row or all of them.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from afina.core.errors import DataError, counted
from afina.core.files import nested_deeply
from afina.core.limits import COLUMNS, JSON_CHARACTERS, NESTING, RECORD_CHARACTERS
from afina.data.files import File
from afina.data.formats._columns import EXAMPLE, rows_within
from afina.data.formats._text import characters, lines_of, note_encoding, too_long
from afina.data.rows import Notes, Record, Rejected

_NAMES = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number", dict: "an object"}
_LOOKED_AT = 50  # lines by which objects a line are told from objects over many lines
_SPEAKERS = {"role": "messages", "from": "conversations"}  # members of a message, and what a list of these is called
_PLAIN = json.JSONDecoder()
_BETWEEN = re.compile(r"[\s,]*")


def read_json(file: File, notes: Notes, one_row: bool) -> Iterator[Record | Rejected]:
    """The rows of a file of JSON; `one_row` says that a single object in it is a row, unless its columns are lists.
    Raises `DataError` where it is not JSON."""
    note_encoding(file, notes)
    chunks, start = characters(file), ""
    while not start.strip() or (start.lstrip()[0] != "[" and start.count("\n") < _LOOKED_AT):
        if len(start) > RECORD_CHARACTERS or not (chunk := next(chunks, "")):
            break
        start += chunk
    if not start.strip():
        if len(start) > RECORD_CHARACTERS:
            raise DataError(f"{file.name} begins with {len(start):,} blanks", "check what it is")
        return
    first, decoder = start.lstrip()[0], _decoder(file.name, notes)
    if first == "[" and not (one_row and _is_row(start)):
        yield from _list(_Scanner(file.name, start, chunks, decoder))
    elif first == "{" and not _has_line(start):
        yield from _stream(_Scanner(file.name, start, chunks, decoder), notes, one_row)
    elif one_row or first == "{":
        yield from _lines(lines_of(file.name, [start], chunks), file.name, notes, one_row, decoder)
    else:
        value = _Scanner(file.name, start, chunks, decoder).value()
        raise DataError(f"{file.name} holds {noun(value)}, expected a list of objects", EXAMPLE)


def _decoder(name: str, notes: Notes) -> json.JSONDecoder:
    """One that says which members stand in an object more than once."""

    def made(members: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(members)
        if len(found) < len(members):
            key = next(key for key, n in Counter(key for key, _ in members).items() if n > 1)
            notes.say(f"{name}: {key!r} stands in an object more than once: the last is read")
        return found

    return json.JSONDecoder(object_pairs_hook=made)


def row_of(value: Any, location: str) -> Record | Rejected:
    """An object's members are the columns; a list of messages is a conversation; anything else is not a row."""
    if isinstance(value, dict | list) and nested_deeply(value):
        return Rejected(location, f"it is nested more than {NESTING} deep")
    if isinstance(value, dict):
        if not value:
            return Rejected(location, "it is an object without members")
        if len(value) > COLUMNS:
            return Rejected(location, f"it has more than {COLUMNS:,} columns")
        return Record(value, location)
    for speaker, column in _SPEAKERS.items():
        if value and isinstance(value, list) and all(isinstance(each, dict) and speaker in each for each in value):
            return Record({column: value}, location)
    return Rejected(location, f"it holds {noun(value)}, expected an object with named columns")


def noun(value: Any) -> str:
    """What kind of value it is, in words."""
    return _NAMES.get(type(value), "null")


def _has_line(start: str) -> bool:
    """Whether one of the first lines is an object of its own."""
    lines = (line for line in start.split("\n", _LOOKED_AT)[:_LOOKED_AT] if line.startswith("{"))
    return any(isinstance(_line(line), dict) for line in lines)


def _is_row(start: str) -> bool:
    """Whether the list in the first line is a row (no rows are lists, which is said of it), and not all of them."""
    line, _, rest = start.lstrip().partition("\n")
    value = _line(line)
    return isinstance(value, list) and (bool(rest.strip()) or not any(isinstance(each, dict) for each in value))


def _reason(error: Exception) -> str:
    """Why JSON that is well formed cannot be read; Python's own words are of its settings."""
    return "nested too deeply" if isinstance(error, RecursionError) else "a number has thousands of digits"


def _line(line: str, decoder: json.JSONDecoder = _PLAIN) -> Any:
    """The value in a line, which may end with the comma of a list; a `ValueError` where there is none."""
    try:
        return decoder.decode(line.strip().removesuffix(","))
    except (ValueError, RecursionError) as error:
        return error if isinstance(error, json.JSONDecodeError) else ValueError(_reason(error))


def _lines(
    lines: Iterable[str], name: str, notes: Notes, one_row: bool, decoder: json.JSONDecoder
) -> Iterator[Record | Rejected]:
    """A row a line; empty lines are passed over."""
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip() not in ("", "]"))
    held = next(numbered, None)  # until it is known whether there is more than one
    if held is None:
        return
    value, following = _line(held[1], decoder), next(numbered, None)
    if following is None and isinstance(value, dict):
        yield from _only(value, f"{name}:{held[0]}", name, notes, one_row)
        return
    while held is not None:
        location = f"{name}:{held[0]}"
        yield Rejected(location, f"not JSON ({value})") if isinstance(value, ValueError) else row_of(value, location)
        held, following = following, next(numbered, None) if following else None
        value = _line(held[1], decoder) if held else None


def _only(value: dict[str, Any], location: str, name: str, notes: Notes, one_row: bool) -> Iterator[Record | Rejected]:
    """What a single object is: all rows, or one."""
    rows = rows_within(value, name, notes, one_row)
    if rows is None:
        yield Record(value, location)
        return
    for number, row in enumerate(rows, 1):
        yield row_of(row, f"{name}, item {number}")


def _stream(scanner: "_Scanner", notes: Notes, one_row: bool) -> Iterator[Record | Rejected]:
    """Objects one after another, over any lines, with or without commas between."""
    scanner.next()
    location, value = f"{scanner.name}:{scanner.line}", scanner.value(most=JSON_CHARACTERS)  # it may be all rows
    if scanner.next() in ("", "]"):
        yield from _only(value, location, scanner.name, notes, one_row)
        return
    while True:
        yield row_of(value, location)
        if scanner.next() in ("", "]"):
            return
        location, value = f"{scanner.name}:{scanner.line}", scanner.value()


def _list(scanner: "_Scanner") -> Iterator[Record | Rejected]:
    scanner.next()
    scanner.at += 1
    count = 0
    while scanner.next() != "]":
        value = scanner.value(f" after item {count}")
        count += 1
        yield row_of(value, f"{scanner.name}, item {count}")
    scanner.at += 1
    if scanner.next():
        raise DataError(
            f"{scanner.name}:{scanner.line}: something follows the list of {counted(count, 'item')}",
            "delete it, or the brackets",
        )


class _Scanner:
    """Values of a text that comes in pieces; `line` is that of the position `at`."""

    def __init__(self, name: str, start: str, chunks: Iterator[str], decoder: json.JSONDecoder) -> None:
        self.name, self.line, self.at = name, 1, 0
        self._buffer, self._chunks = start, chunks
        self._decoder = decoder

    def next(self) -> str:
        """Goes to the next character that is neither white space nor a comma; it, or '' at the end."""
        while True:
            self._pass(_BETWEEN.match(self._buffer, self.at).end())  # type: ignore[union-attr]
            if self.at < len(self._buffer) or not self._more():
                return self._buffer[self.at : self.at + 1]

    def value(self, where: str = "", most: int = RECORD_CHARACTERS) -> Any:
        """Raises `DataError` where what comes is not JSON, or has more than `most` characters."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self.at)
                if end == len(self._buffer):  # a number may go on in the next piece
                    end -= self.at
                    if self._more():
                        continue
                if end - self.at > most:
                    raise too_long(f"{self.name}:{self.line}", most)
                self._pass(end)
                return value
            except (ValueError, RecursionError) as error:
                reason, line = _reason(error), self.line
                if isinstance(error, json.JSONDecodeError):
                    reason, line = error.msg, self.line + self._buffer.count("\n", self.at, error.pos)
                if len(self._buffer) - self.at > most and _goes_on(error, len(self._buffer)):
                    raise too_long(f"{self.name}:{self.line}", most) from error
                if len(self._buffer) - self.at <= most and self._more():
                    continue
                raise DataError(
                    f"{self.name}:{line}: not JSON{where} ({reason})", "fix it, or give one object per line as .jsonl"
                ) from error

    def _pass(self, end: int) -> None:
        self.line += self._buffer.count("\n", self.at, end)
        self.at = end

    def _more(self) -> bool:
        """Reads as much again as there is of a value, so that a long one is not parsed from its beginning with every
        piece."""
        rest = self._buffer[self.at :]
        pieces, length = [rest], 0
        while length <= len(rest) and (chunk := next(self._chunks, "")):
            pieces.append(chunk)
            length += len(chunk)
        self._buffer, self.at = "".join(pieces), 0
        return length > 0


def _goes_on(error: Exception, length: int) -> bool:
    """Whether a text of that length is not JSON because it stops too early."""
    return isinstance(error, json.JSONDecodeError) and (error.pos >= length or error.msg.startswith("Unterminated"))
