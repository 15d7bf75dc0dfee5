"""From files to rows, one after another: nothing of a file is kept once its rows have gone on."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from afina.core.errors import DataError
from afina.data.files import STANDARD_INPUT, Encoding, Piece, detect, pieces, unreadable
from afina.data.formats.tables import read_csv, read_excel
from afina.data.rows import Notes, Record, Rejected
from afina.data.settings import DataSettings

Row = Record | Rejected
_CHUNK = 1 << 20  # characters
_PLAIN = {"utf-8", "utf-8-sig"}


def read(settings: DataSettings, notes: Notes) -> Iterator[Row]:
    """Every row of the data: a record, or rejected with its reason. What is found out about the files goes into `notes`.

    Raises `DataError` where a file cannot be read at all: it is absent, damaged, binary, or of no known kind.
    """
    if is_hub_id(settings.path):
        yield from _hub(settings, notes)
        return
    if settings.target is not None:
        yield from _pairs(settings.path, settings.target, notes)
        return
    for piece in pieces(settings.path):
        if str(settings.path) == STANDARD_INPUT and "text" in settings.model_fields_set:
            piece = replace(piece, suffix=".txt")
        yield from _piece(piece, settings, notes)


def _piece(piece: Piece, settings: DataSettings, notes: Notes) -> Iterator[Row]:
    if piece.suffix == ".parquet":
        return _parquet(piece)
    if piece.suffix == ".arrow":
        return _arrow(piece)
    if piece.suffix == ".xlsx":
        return read_excel(piece, notes)
    encoding = detect(piece)
    if encoding.name not in _PLAIN:
        notes.say(f"{piece.name} is read as {encoding.name.upper().replace('CP', 'Windows-')}, for it is not UTF-8")
    if encoding.name == "utf-8-sig":
        notes.say(f"{piece.name} begins with a byte-order mark, which is left out")
    if encoding.nuls:
        notes.say(f"{piece.name}: {encoding.nuls} NUL bytes are left out")
    if piece.suffix == ".jsonl":
        return _jsonl(piece, encoding)
    if piece.suffix == ".json":
        return _json(piece, encoding)
    if piece.suffix == ".txt":
        return _text(piece, encoding, settings.text)
    return read_csv(piece, encoding, notes)


# ------------------------------------------------------------------------------------------------ JSON


def _jsonl(piece: Piece, encoding: Encoding) -> Iterator[Row]:
    """One object a line. Only line feeds end a line: JSON may hold other separators, such as U+2028, inside its strings."""
    for number, line in enumerate(_feeds(piece, encoding), 1):
        if line.strip():
            where = f"{piece.name}:{number}"
            try:
                yield _row(_parse(line), where)
            except ValueError as error:
                yield Rejected(where, f"not JSON ({error})")


def _feeds(piece: Piece, encoding: Encoding) -> Iterator[str]:
    """The lines of a text, by line feeds alone."""
    rest = ""
    for chunk in _characters(piece, encoding):
        *lines, rest = (rest + chunk).split("\n")
        yield from lines
    yield rest


def _characters(piece: Piece, encoding: Encoding) -> Iterator[str]:
    with encoding.text(piece) as file:
        while chunk := _some(file, piece):
            yield chunk.replace("\0", "")


def _some(file: IO[str], piece: Piece) -> str:
    try:
        return file.read(_CHUNK)
    except (UnicodeError, OSError, EOFError, ValueError) as error:
        raise unreadable(piece.name, error) from error


def _json(piece: Piece, encoding: Encoding) -> Iterator[Row]:
    """A list, item by item; or one object that holds a single list (which is read whole). A file of lines is read as such."""
    buffer, chunks = "", _characters(piece, encoding)
    while not buffer and (chunk := next(chunks, "")):
        buffer = chunk.lstrip()
    if not buffer:
        return
    if buffer[0] != "[":
        yield from _one_object(piece, encoding, buffer + "".join(chunks))
        return
    for number, value in enumerate(_items(piece, buffer[1:], chunks), 1):
        yield _row(value, f"{piece.name}, item {number}")


def _items(piece: Piece, buffer: str, chunks: Iterator[str]) -> Iterator[Any]:
    decoder = json.JSONDecoder(parse_constant=_refuse)
    count, at, more = 0, 0, True
    while True:
        at = re.compile(r"[\s,]*").match(buffer, at).end()  # type: ignore[union-attr]
        if buffer[at : at + 1] == "]":
            if (buffer[at + 1 :] + "".join(chunks)).strip():
                raise DataError(f"{piece.name}: something follows the list of {count} items", "delete it")
            return
        try:
            value, end = decoder.raw_decode(buffer, at)
            if not more or end < len(buffer):  # a number at the end may go on in the next chunk
                count += 1
                at = end
                yield value
                continue
        except (ValueError, RecursionError) as error:
            if not more:
                reason = "nested too deeply" if isinstance(error, RecursionError) else error
                raise DataError(
                    f"{piece.name}: not JSON after item {count} ({reason})",
                    "mend it, or give one object a line as .jsonl",
                ) from error
        chunk = next(chunks, "")
        more = bool(chunk)
        buffer, at = buffer[at:] + chunk, 0


def _one_object(piece: Piece, encoding: Encoding, text: str) -> Iterator[Row]:
    try:
        value = _parse(text)
    except ValueError as error:
        if "Extra data" in str(error):  # one object a line, whatever the file is called
            yield from _jsonl(piece, encoding)
            return
        raise DataError(f"{piece.name}: not JSON ({error})", "for one object a line use the suffix .jsonl") from error
    if not isinstance(value, dict):
        raise DataError(f"{piece.name} holds {_kind(value)}, expected a list of objects")
    lists = [name for name, item in value.items() if isinstance(item, list)]
    if len(lists) != 1:
        raise DataError(
            f"{piece.name} is one object with {len(lists)} lists in it, expected a list of objects or one list"
        )
    for number, item in enumerate(value[lists[0]], 1):
        yield _row(item, f"{piece.name}, item {number}")


def _parse(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _row(value: Any, where: str) -> Row:
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


# ------------------------------------------------------------------------------------------------ text


def _text(piece: Piece, encoding: Encoding, unit: str) -> Iterator[Row]:
    """Plain text in the column `text`: a row a line, a paragraph (empty lines between), or the whole file."""
    number, begun, lines = 0, 1, list[str]()
    for number, line in enumerate(_feeds(piece, encoding), 1):
        line = line.rstrip("\r")
        if line.strip() or unit == "document":
            lines.append(line)
        if lines and (unit == "line" or (unit == "paragraph" and not line.strip())):
            yield Record({"text": "\n".join(lines)}, f"{piece.name}:{begun}")
            lines = []
        if not lines:
            begun = number + 1
    if any(line.strip() for line in lines):
        yield Record({"text": "\n".join(lines).strip("\n")}, f"{piece.name}:{begun}")


def _pairs(source: Path, target: Path, notes: Notes) -> Iterator[Row]:
    """Two text files whose lines answer one another, as the columns `source` and `target`."""
    both = []
    for path in (source, target):
        (piece,) = pieces(path)[:1]
        encoding = detect(piece)
        both.append((piece, _feeds(piece, encoding)))
    (one, lines), (other, answers) = both
    number = 0
    for number, line in enumerate(lines, 1):
        answer = next(answers, None)
        if answer is None:
            raise DataError(
                f"{other.name} has {number - 1} lines, {one.name} has more", "lines must answer one another, one to one"
            )
        if line.strip() or answer.strip():
            yield Record({"source": line.rstrip("\r"), "target": answer.rstrip("\r")}, f"{one.name}:{number}")
    if any(rest.strip() for rest in answers):
        raise DataError(
            f"{one.name} has {number} lines, {other.name} has more", "lines must answer one another, one to one"
        )


# ------------------------------------------------------------------------------------------------ columns


def _parquet(piece: Piece) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with piece.open() as file:
            yield from _batches(piece, pyarrow.parquet.ParquetFile(file).iter_batches(1024))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise unreadable(piece.name, error) from error


def _arrow(piece: Piece) -> Iterator[Row]:
    """Arrow's file format, or its stream (which data sets of the hub's library are kept in)."""
    import pyarrow

    try:
        with piece.open() as file:
            if file.read(6) == b"ARROW1":
                reader = pyarrow.ipc.open_file(piece.path)
                yield from _batches(piece, (reader.get_batch(i) for i in range(reader.num_record_batches)))
            else:
                file.seek(0)
                yield from _batches(piece, pyarrow.ipc.open_stream(file))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise unreadable(piece.name, error) from error


def _batches(piece: Piece, batches: Any) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for values in batch.to_pylist():
            number += 1
            yield Record(values, f"{piece.name}, row {number}")


# ------------------------------------------------------------------------------------------------ the hub


def is_hub_id(path: Path) -> bool:
    """owner/name, or owner/name:config:split, where there is no such file."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]*){0,2}", str(path))) and not (
        path.exists()
        or path.parent.exists()
        or Path(str(path).split(":")[0]).suffix in (".jsonl", ".json", ".csv", ".tsv", ".txt")
    )


def _hub(settings: DataSettings, notes: Notes) -> Iterator[Row]:
    name, config, split = (*str(settings.path).split(":"), "", "")[:3]
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"data {name} is no file here; for data sets of the hub the library `datasets` is missing",
            "check the path, or install it: pip install 'afina[hub]'",
        ) from error
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        for number, values in enumerate(rows, 1):
            yield Record(dict(values), f"{name}, row {number}")
    except Exception as error:  # whatever the hub, its files or the network bring about
        raise DataError(
            f"data set {name!r} cannot be loaded: {str(error).splitlines()[0][:200]}",
            "give it as owner/name:config:split, or check the path if it is a file",
        ) from error
