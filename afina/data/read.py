"""From a file to records, each knowing its file and line."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afina.core.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv")
_SHOWN = 8


@dataclass(frozen=True)
class Record:
    """One row of a file; `where` is 'file:line' (of a JSON list 'file, item n')."""

    values: dict[str, Any]
    where: str


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be used, and why."""

    where: str
    reason: str


def read(path: Path) -> tuple[list[Record], list[Rejected]]:
    """All rows of a JSONL, JSON or CSV file (UTF-8, CSV with a header).

    A row of the wrong shape (a list where an object belongs, a CSV line with missing fields) is rejected. A file that is
    not what its name says (broken JSON, binary, no header) raises `DataError` with the lines.
    """
    reader = {".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv}.get(path.suffix.lower())
    if path.is_dir():
        raise DataError(f"data {path} is a folder", "give one file of examples")
    if not path.exists():
        raise DataError(f"data {path}: no such file", "check the path")
    if not path.is_file():
        raise DataError(f"data {path} is not a regular file", "write the examples to a file first")
    if reader is None:
        kind = f"type {path.suffix!r} is not read" if path.suffix else "it has no suffix, so its type is unknown"
        raise DataError(f"data {path}: {kind}", f"give one of {', '.join(SUFFIXES)}")
    records: list[Record] = []
    rejected: list[Rejected] = []
    for row in reader(path, _text(path)):
        (records if isinstance(row, Record) else rejected).append(row)  # type: ignore[arg-type]
    if not records and not rejected:
        raise DataError(f"data {path} is empty: it holds no example", "give a file with at least one")
    return records, rejected


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read data {path}: {error.strerror}") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"data {path} is UTF-16", "save the file with the encoding UTF-8")
    if b"\0" in data[:65536]:
        raise DataError(f"data {path} is a binary file (it holds NUL bytes)", "export it as UTF-8 text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"data {path}:{line}: byte 0x{data[error.start]:02x} is not UTF-8", "save the file with the encoding UTF-8"
        ) from error


def _jsonl(path: Path, text: str) -> Iterator[Record | Rejected]:
    broken = []
    # Only line feeds end a line: JSON may hold other separators, such as U+2028, inside its strings.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield _row(_parse(line), f"{path}:{number}")
        except ValueError as error:
            broken.append(f"{path}:{number}: not JSON ({error})")
    if broken:
        more = [f"… and {len(broken) - _SHOWN} lines more"] if len(broken) > _SHOWN else []
        raise DataError(broken[:_SHOWN] + more, "mend or delete these lines; each must be one JSON object")


def _json(path: Path, text: str) -> Iterator[Record | Rejected]:
    if not text.strip():
        return
    try:
        value = _parse(text)
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})", "for one object a line use the suffix .jsonl") from error
    if isinstance(value, dict):
        lists = [name for name, item in value.items() if isinstance(item, list)]
        if len(lists) != 1:
            raise DataError(
                f"{path} is one object with {len(lists)} lists in it, expected a list of objects or one list"
            )
        value = value[lists[0]]
    if not isinstance(value, list):
        raise DataError(f"{path} holds {_kind(value)}, expected a list of objects")
    for number, item in enumerate(value, 1):
        yield _row(item, f"{path}, item {number}")


def _parse(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not a JSON number")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _row(value: Any, where: str) -> Record | Rejected:
    if isinstance(value, dict):
        return Record(value, where)
    return Rejected(where, f"it holds {_kind(value)}, expected an object with named columns")


def _kind(value: Any) -> str:
    names = {
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        dict: "an object",
    }
    return names.get(type(value), "null")


def _csv(path: Path, text: str) -> Iterator[Record | Rejected]:
    csv.field_size_limit(1 << 30)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        if len(set(header)) < len(header) or not all(name.strip() for name in header):
            raise DataError(
                f"{path}:1: the header {header} has empty or repeated names", "give each column its own name"
            )
        if len(header) == 1 and (separator := next((c for c in ";\t|" if c in header[0]), "")):
            raise DataError(
                f"{path}:1: the header {header[0][:80]!r} is one column; {separator!r} seems to separate its columns",
                "save the file with commas",
            )
        while True:
            start = reader.line_num + 1
            row = next(reader, None)
            if row is None:
                return
            if not row:
                continue
            if len(row) != len(header):
                yield Rejected(f"{path}:{start}", f"{len(row)} fields, the header has {len(header)}")
            else:
                yield Record(dict(zip(header, row, strict=True)), f"{path}:{start}")
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV ({error})", "check the quotes on that line") from error
