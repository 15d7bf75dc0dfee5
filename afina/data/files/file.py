"""A file of rows, opened once: its bytes, compressed or not, its hash, and its text."""

import bz2
import gzip
import hashlib
import io
import lzma
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from afina.core.errors import AfinaError, DataError, brief
from afina.core.events import Listener, Ticker, ignore
from afina.core.files import sha256
from afina.core.limits import UNPACKED_BYTES, UNPACKED_RATIO
from afina.data.files.encodings import Encoding, find_encoding

if TYPE_CHECKING:
    from afina.data.formats.delimited import Dialect

_OPENERS: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
STANDARD_INPUT = "-"
COMPRESSED = (*_OPENERS, ".zst")
_CHUNK = 1 << 20
_BUFFER = 1 << 17
_START = 4096  # bytes by which a format is recognised
_IN_MEMORY = 64 << 20  # bytes: files up to this size are kept in memory from the first look until they are parsed


def suffix_of(path: Path) -> str:
    """The suffix of a file's contents: of `rows.csv.gz` it is `.csv`."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSED else suffix


class File:
    """One file of rows: its `path`, the `name` that messages give it, and the `suffix` of its contents.

    What the first look at its bytes shows (hash, encoding, a table's dialect) is kept for the passes that follow. So
    are the bytes themselves, up to `_IN_MEMORY`, until they are parsed: the hash and the encoding are decided by all of
    them, and are known before the first row is. `given` is the encoding that its text has, `expected` one that it has
    where that is neither marked nor UTF-8. `features` describe its columns, as the hub's data sets do. `target` is a
    file whose lines answer this one's. `listener` hears how far a long reading is."""

    def __init__(
        self,
        path: Path,
        name: str | None = None,
        *,
        given: str | None = None,
        expected: str | None = None,
        features: Any = None,
        listener: Listener = ignore,
    ) -> None:
        self.path, self.name, self.features, self.listener = path, name or str(path), features, listener
        self._given, self._expected = given, expected
        self.suffix = suffix_of(path)
        self.target: File | None = None
        self.dialect: Dialect | None = None
        self._bytes: bytes | None = None
        self._hash: str | None = None
        self._version: tuple[int, int] | None = None

    def start(self) -> bytes:
        """The first bytes of the contents."""
        with reading_data(self.name), self._unpacked(self.path.open("rb")) as file:
            return file.read(_START)

    def open(self) -> IO[bytes]:
        """The contents, decompressed. Raises `DataError` where they cannot be read, or are not what they were when
        first read."""
        self._look()
        content, self._bytes = self._bytes, None
        with reading_data(self.name):
            return self._unpacked(self._raw(content), "rows")

    def text(self) -> io.TextIOWrapper:
        """The contents as text, line ends as they are. Raises `DataError` where they are no text."""
        encoding = self.encoding
        return io.TextIOWrapper(self.open(), encoding.name, encoding.errors, newline="")

    @property
    def sha256(self) -> str:
        """Hex digest of the bytes on disk."""
        self._look()
        if self._hash is None:
            self._hash = sha256(self.path)
        return self._hash

    @property
    def is_decided(self) -> bool:
        """Whether its encoding was looked for."""
        return "encoding" in vars(self)

    @cached_property
    def encoding(self) -> Encoding:
        """Raises `DataError` where the file is no text, or not in the encoding that was given."""
        self._look()
        return find_encoding(self._chunks, self.name, self._given, self._expected)

    def _look(self) -> None:
        """Takes a small file into memory when it is first read. Raises `DataError` where it was changed since."""
        with reading_data(self.name):
            found = self.path.stat()
            version = found.st_size, found.st_mtime_ns
            if self._version is None:
                self._version = version
                if found.st_size <= _IN_MEMORY:
                    self._bytes = self.path.read_bytes()
                    self._hash = hashlib.sha256(self._bytes).hexdigest()
        if version != self._version:
            raise DataError(f"{self.name} was changed while it was read", "start again")

    def _raw(self, content: bytes | None) -> IO[bytes]:
        return self.path.open("rb") if content is None else io.BytesIO(content)

    def _unpacked(self, raw: IO[bytes], what: str = "") -> IO[bytes]:
        """What is within the bytes of `raw`, which is closed with it; the listener hears how much of `what` is read."""
        packing, inner = self.path.suffix.lower(), raw
        if packing in _OPENERS:
            inner = _OPENERS[packing](raw)
        elif packing == ".zst":
            import pyarrow

            inner = pyarrow.CompressedInputStream(raw, "zstd")
        watch = self._tell(what) if what and self.listener is not ignore else None
        return (
            raw
            if inner is raw and watch is None
            else io.BufferedReader(_Unpacked(inner, raw, watch, self.name), _BUFFER)
        )

    def _tell(self, what: str) -> Callable[[int], None]:
        size, tick = self.path.stat().st_size, Ticker(self.listener)

        def tell(at: int) -> None:
            if at < size:
                tick(f"reading {what} of {self.name}, per cent", 100 * at // size, 100)

        return tell

    def _chunks(self) -> Iterator[bytes]:
        """The contents; the bytes of a file that is not packed are hashed as they are read."""
        digest = None if self._hash or self.path.suffix.lower() in COMPRESSED else hashlib.sha256()
        with reading_data(self.name), self._unpacked(self._raw(self._bytes), "the text") as file:
            while chunk := file.read(_CHUNK):
                if digest:
                    digest.update(chunk)
                yield chunk
        if digest:
            self._hash = digest.hexdigest()


class _Unpacked(io.RawIOBase):
    """What `inner` makes of the bytes of `raw`; both are closed together, and `watch` is told the place in `raw`."""

    def __init__(self, inner: IO[bytes], raw: IO[bytes], watch: Callable[[int], None] | None, name: str) -> None:
        self._inner, self._source, self._watch, self._name = inner, raw, watch, name
        self._read = 0

    def readinto(self, buffer: Any) -> int:
        content = self._inner.read(len(buffer))
        buffer[: len(content)] = content
        self._read += len(content)
        is_packed = self._inner is not self._source
        if is_packed and self._read > UNPACKED_BYTES and self._read > UNPACKED_RATIO * self._source.tell():
            raise expands(self._name, UNPACKED_RATIO)
        if self._watch:
            self._watch(self._source.tell())
        return len(content)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._inner.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._inner.seek(offset, whence)

    def tell(self) -> int:
        return self._inner.tell()

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
            self._source.close()
        super().close()


@contextmanager
def reading_data(name: str) -> Iterator[None]:
    """Turns whatever a library raises inside the block, where it reads the file called `name`, into one `DataError`."""
    try:
        yield
    except AfinaError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or brief(error)
        remedy = "check the file; if it was copied or packed, do that again"
        raise DataError(f"cannot read data {name}: {reason}", remedy) from error


def expands(name: str, ratio: int) -> DataError:
    """What is said of a file that holds far more than it could say."""
    problem = f"data {name} is compressed to less than one part in {ratio}, which no data are"
    return DataError(problem, "unpack it first, if it is what you expect")
