"""JSON: a list of objects, read item by item, or one object that holds a single list, which is read as a whole."""

import json
import re
from collections.abc import Iterator
from typing import Any

from afina.core.errors import DataError
from afina.data.files import File
from afina.data.formats import Format
from afina.data.formats._json import noun, parse, refuse, row_of, rows_of
from afina.data.formats._text import characters, note_encoding
from afina.data.rows import Notes, Record, Rejected
from afina.data.settings import DataSettings


def _read(file: File, settings: DataSettings, notes: Notes) -> Iterator[Record | Rejected]:
    note_encoding(file, notes)
    buffer, chunks = "", characters(file)
    before = 0  # lines that hold nothing, before the first value
    while not buffer and (chunk := next(chunks, "")):
        buffer = chunk.lstrip()
        before += chunk[: len(chunk) - len(buffer)].count("\n")
    if not buffer:
        return
    if buffer[0] != "[":
        yield from _one_object(file, buffer + "".join(chunks), before)
        return
    for number, value in enumerate(_items(file, buffer[1:], chunks), 1):
        yield row_of(value, f"{file.name}, item {number}")


def _items(file: File, buffer: str, chunks: Iterator[str]) -> Iterator[Any]:
    decoder = json.JSONDecoder(parse_constant=refuse)
    count, at, more = 0, 0, True
    while True:
        at = re.compile(r"[\s,]*").match(buffer, at).end()  # type: ignore[union-attr]
        if buffer[at : at + 1] == "]":
            if (buffer[at + 1 :] + "".join(chunks)).strip():
                raise DataError(f"{file.name}: something follows the list of {count} items", "delete it")
            return
        try:
            value, end = decoder.raw_decode(buffer, at)
            if not more or end < len(buffer):  # a number at the end may continue in the next chunk
                count += 1
                at = end
                yield value
                continue
        except (ValueError, RecursionError) as error:
            if not more:
                reason = "nested too deeply" if isinstance(error, RecursionError) else error
                raise DataError(
                    f"{file.name}: not JSON after item {count} ({reason})",
                    "fix it, or give one object per line as .jsonl",
                ) from error
        chunk = next(chunks, "")
        more = bool(chunk)
        buffer, at = buffer[at:] + chunk, 0


def _one_object(file: File, text: str, before: int) -> Iterator[Record | Rejected]:
    try:
        value = parse(text)
    except ValueError as error:
        if "Extra data" in str(error):  # one object per line, whatever the file is called
            yield from rows_of(("\n" * before + text).split("\n"), file.name)
            return
        raise DataError(f"{file.name}: not JSON ({error})", "for one object per line use the suffix .jsonl") from error
    if not isinstance(value, dict):
        raise DataError(f"{file.name} holds {noun(value)}, expected a list of objects")
    lists = [name for name, item in value.items() if isinstance(item, list)]
    if len(lists) != 1:
        raise DataError(
            f"{file.name} is one object with {len(lists)} lists in it, expected a list of objects or one list"
        )
    for number, item in enumerate(value[lists[0]], 1):
        yield row_of(item, f"{file.name}, item {number}")


FORMAT = Format("json", _read, (".json",), resembles=lambda start: start[:1] == b"[")
