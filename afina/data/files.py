"""Where rows come from: a file, a folder of files, standard input, compressed or not; and bytes as text, whatever wrote them."""

import atexit
import bz2
import codecs
import gzip
import io
import lzma
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from afina.core.errors import DataError
from afina.core.files import sha256

_OPENERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
COMPRESSED = (*_OPENERS, ".zst")
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".xlsx")
STANDARD_INPUT = "-"
_CHUNK = 1 << 20
_UNDEFINED_IN_1252 = frozenset(b"\x81\x8d\x8f\x90\x9d")
_CONTROL = bytes(set(range(32)) - set(b"\t\n\r\f\x0b\x1a\x1b\0")) + b"\x7f"


@dataclass(frozen=True)
class Piece:
    """One file of rows: `suffix` is that of its contents, `name` what messages call it."""

    path: Path
    name: str
    suffix: str

    def open(self) -> IO[bytes]:
        """The contents, decompressed. Raises `DataError`."""
        packing = self.path.suffix.lower()
        try:
            if packing in _OPENERS:
                return cast(IO[bytes], _OPENERS[packing](self.path))
            if packing == ".zst":
                import pyarrow

                return cast(IO[bytes], pyarrow.CompressedInputStream(str(self.path), "zstd"))
            return self.path.open("rb")
        except OSError as error:
            raise unreadable(self.name, error) from error

    def chunks(self) -> Iterator[bytes]:
        with self.open() as file:
            while chunk := _read(file, self.name):
                yield chunk


def unreadable(name: str, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or error
    return DataError(f"cannot read data {name}: {reason}", "check the file; if it was copied or packed, do that again")


def _read(file: IO[bytes], name: str) -> bytes:
    try:
        return file.read(_CHUNK)
    except (OSError, EOFError, lzma.LZMAError, ValueError) as error:  # a damaged archive
        raise unreadable(name, error) from error


def pieces(path: Path) -> list[Piece]:
    """The files that `path` means: itself, those of a folder in order of name, or standard input ('-'). Raises `DataError`."""
    if str(path) == STANDARD_INPUT:
        return [_standard_input()]
    if not path.exists():
        raise DataError(f"data {path}: no such file", "check the path")
    if path.is_dir():
        found = [file for file in sorted(path.rglob("*")) if file.is_file() and _contents(file) in SUFFIXES]
        if not found:
            raise DataError(
                f"data {path} is a folder without files of rows", f"files of {', '.join(SUFFIXES)} are read"
            )
        return [Piece(file, str(file), _sniffed(Piece(file, str(file), _contents(file))) or ".txt") for file in found]
    if not path.is_file():
        raise DataError(f"data {path} is not a regular file", "write the examples to a file first, or pipe them to '-'")
    piece = Piece(path, str(path), _contents(path))
    known = _sniffed(piece)
    if known is None:
        kind = f"type {piece.suffix!r} is not read" if piece.suffix else "it has no suffix, so its type is unknown"
        raise DataError(
            f"data {path}: {kind}", f"give one of {', '.join(SUFFIXES)}, as it is or with {', '.join(COMPRESSED)}"
        )
    return [Piece(path, str(path), known)]


def fingerprint(path: Path) -> list[list[str]]:
    """The name and SHA-256 of every file that `path` means."""
    return [[piece.name, sha256(piece.path)] for piece in pieces(path)]


def _contents(path: Path) -> str:
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSED else suffix


def _sniffed(piece: Piece) -> str | None:
    """The suffix of what the file holds: by its first bytes where these are a format's own, else by its name."""
    with piece.open() as file:
        start = _read(file, piece.name)[:8]
    if start.startswith(b"PAR1"):
        return ".parquet"
    if start.startswith(b"ARROW1"):
        return ".arrow"
    if start.startswith(b"PK\x03\x04") and piece.suffix in ("", ".xlsx", ".xlsm", ".xls", ".csv"):
        return ".xlsx"
    return {".ndjson": ".jsonl", ".tab": ".tsv", ".text": ".txt", ".md": ".txt", ".feather": ".arrow"}.get(
        piece.suffix, piece.suffix if piece.suffix in SUFFIXES else None
    )


_kept: dict[int, Piece] = {}  # standard input comes once


def _standard_input() -> Piece:
    """What comes in, kept in a file for as long as the program runs: it is read more than once."""
    if id(sys.stdin) in _kept:
        return _kept[id(sys.stdin)]
    folder = Path(tempfile.mkdtemp(prefix="afina-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "standard-input"
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    with path.open("rb") as file:
        start = file.read(4096).lstrip(codecs.BOM_UTF8).lstrip()
    suffix = _sniffed(Piece(path, "standard input", "")) or (
        ".json" if start[:1] == b"[" else ".jsonl" if start[:1] == b"{" else ".csv"
    )
    _kept[id(sys.stdin)] = Piece(path, "standard input", suffix)
    return _kept[id(sys.stdin)]


@dataclass(frozen=True)
class Encoding:
    """How a file's bytes are read as text, and how many NUL bytes are left out of it."""

    name: str
    nuls: int = 0

    def text(self, piece: Piece) -> io.TextIOWrapper:
        return io.TextIOWrapper(piece.open(), self.name, newline="")


def detect(piece: Piece) -> Encoding:
    """The encoding of a text file: by its mark, else UTF-8 where all of it is that, else Windows-1252 or Latin-1.

    Raises `DataError` where the file is no text.
    """
    utf8 = codecs.getincrementaldecoder("utf-8")()
    is_utf8, nuls, high, first = True, 0, set[int](), b""
    for chunk in piece.chunks():
        if not first:
            first = chunk
            if chunk.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                return Encoding("utf-16")
            for name, at in (("utf-16-le", 1), ("utf-16-be", 0)):
                if chunk[at:4096:2].count(0) > 0.4 * len(chunk[at:4096:2]) and not chunk[1 - at : 4096 : 2].count(0):
                    return Encoding(name)
            if len(first.translate(None, _CONTROL)) < 0.99 * len(first) or first.count(0) > 0.05 * len(first):
                raise DataError(
                    f"data {piece.name} is a binary file", f"export it as text, or give {', '.join(SUFFIXES)}"
                )
        nuls += chunk.count(0)
        if is_utf8:
            try:
                utf8.decode(chunk)
            except UnicodeDecodeError:
                is_utf8 = False
        high.update(byte for byte in set(chunk) if byte in _UNDEFINED_IN_1252)
    try:
        utf8.decode(b"", True)
    except UnicodeDecodeError:
        is_utf8 = False
    if is_utf8:
        return Encoding("utf-8-sig" if first.startswith(codecs.BOM_UTF8) else "utf-8", nuls)
    return Encoding("latin-1" if high else "cp1252", nuls)
