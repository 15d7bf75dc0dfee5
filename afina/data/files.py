"""A file of rows, opened once: its bytes, compressed or not, its hash, and the encoding of its text, whatever wrote
it."""

import bz2
import codecs
import gzip
import hashlib
import io
import lzma
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from afina.core.errors import DataError
from afina.core.files import sha256
from afina.data.formats import suffixes

if TYPE_CHECKING:
    from afina.data.formats.delimited import Dialect

_OPENERS: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
STANDARD_INPUT = "-"
COMPRESSED = (*_OPENERS, ".zst")
_CHUNK = 1 << 20
_START = 4096  # bytes by which a format is recognised
_IN_MEMORY = 64 << 20  # bytes: files up to this size are kept in memory from the first look until they are parsed
_UNDEFINED_IN_1252 = frozenset(b"\x81\x8d\x8f\x90\x9d")
_CONTROL = bytes(set(range(32)) - set(b"\t\n\r\f\x0b\x1a\x1b\0")) + b"\x7f"


@dataclass(frozen=True)
class Encoding:
    """How a file's bytes are read as text, and how many NUL bytes are left out of it."""

    name: str
    nuls: int = 0


class File:
    """One file of rows: its `path`, the `name` that messages give it, and the `suffix` of its contents.

    What the first look at its bytes shows (hash, encoding, a table's dialect) is kept for the passes that follow. So
    are the bytes themselves, up to `_IN_MEMORY`, until they are parsed: the hash and the encoding are decided by all of
    them, and are known before the first row is. `target` is a file whose lines answer this one's; `linked` is
    where a link leads out of the folder in which the file was found."""

    def __init__(self, path: Path, name: str | None = None, linked: Path | None = None) -> None:
        self.path, self.name, self.linked = path, name or str(path), linked
        suffix = path.suffix.lower()
        self.suffix = Path(path.stem).suffix.lower() if suffix in COMPRESSED else suffix
        self.target: File | None = None
        self.dialect: Dialect | None = None
        self._bytes: bytes | None = None
        self._hash: str | None = None
        self._version: tuple[int, int] | None = None

    def start(self) -> bytes:
        """The first bytes of the contents."""
        with _reading(self.name), self._unpacked(self.path) as file:
            return file.read(_START)

    def open(self) -> IO[bytes]:
        """The contents, decompressed. Raises `DataError` where they cannot be read, or are not what they were when
        first read."""
        self._look()
        content, self._bytes = self._bytes, None
        with _reading(self.name):
            return self._unpacked(self.path if content is None else io.BytesIO(content))

    def text(self) -> io.TextIOWrapper:
        """The contents as text, line ends as they are. Raises `DataError` where they are no text."""
        encoding = self.encoding.name
        return io.TextIOWrapper(self.open(), encoding, newline="")

    @property
    def sha256(self) -> str:
        """Hex digest of the bytes on disk."""
        self._look()
        if self._hash is None:
            self._hash = sha256(self.path)
        return self._hash

    @cached_property
    def encoding(self) -> Encoding:
        """By its byte-order mark, else UTF-8 where all of it is that, else Windows-1252 or Latin-1. Raises `DataError`
        where the file is no text."""
        self._look()
        return _encoding(self._chunks(), self.name)

    def _look(self) -> None:
        """Takes a small file into memory when it is first read. Raises `DataError` where it was changed since."""
        with _reading(self.name):
            found = self.path.stat()
            version = found.st_size, found.st_mtime_ns
            if self._version is None:
                self._version = version
                if found.st_size <= _IN_MEMORY:
                    self._bytes = self.path.read_bytes()
                    self._hash = hashlib.sha256(self._bytes).hexdigest()
        if version != self._version:
            raise DataError(f"{self.name} was changed while it was read", "start again")

    def _unpacked(self, source: Path | io.BytesIO) -> IO[bytes]:
        packing = self.path.suffix.lower()
        if packing in _OPENERS:
            return cast(IO[bytes], _OPENERS[packing](source))
        if packing == ".zst":
            import pyarrow

            return cast(
                IO[bytes], pyarrow.CompressedInputStream(str(source) if isinstance(source, Path) else source, "zstd")
            )
        return source.open("rb") if isinstance(source, Path) else source

    def _chunks(self) -> Iterator[bytes]:
        """The contents; the bytes of a file that is not packed are hashed as they are read."""
        digest = None if self._hash or self.path.suffix.lower() in COMPRESSED else hashlib.sha256()
        with _reading(self.name), self._unpacked(self.path if self._bytes is None else io.BytesIO(self._bytes)) as file:
            while chunk := file.read(_CHUNK):
                if digest:
                    digest.update(chunk)
                yield chunk
        if digest:
            self._hash = digest.hexdigest()


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, lzma.LZMAError, ValueError) as error:  # ValueError and EOFError: a damaged archive
        raise unreadable(name, error) from error


def unreadable(name: str, error: Exception) -> DataError:
    """What is said of a file that cannot be read."""
    reason = getattr(error, "strerror", None) or error
    return DataError(f"cannot read data {name}: {reason}", "check the file; if it was copied or packed, do that again")


def _encoding(chunks: Iterator[bytes], name: str) -> Encoding:
    utf8 = codecs.getincrementaldecoder("utf-8")()
    is_utf8, nuls, high, first = True, 0, set[int](), b""
    for chunk in chunks:
        if not first:
            first = chunk
            if chunk.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                return Encoding("utf-16")
            for codec, at in (("utf-16-le", 1), ("utf-16-be", 0)):
                if chunk[at:4096:2].count(0) > 0.4 * len(chunk[at:4096:2]) and not chunk[1 - at : 4096 : 2].count(0):
                    return Encoding(codec)
            if len(first.translate(None, _CONTROL)) < 0.99 * len(first) or first.count(0) > 0.05 * len(first):
                raise DataError(f"data {name} is a binary file", f"export it as text, or give {', '.join(suffixes())}")
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
