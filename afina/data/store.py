"""Rows on disk: written one after another, read one at a time, so that memory does not grow with their number."""

import hashlib
import json
import os
import shutil
import struct
import tempfile
import weakref
from array import array
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from afina.core.errors import InputError, writing
from afina.core.files import read_json, sha256, write_json
from afina.core.process.temporary import replacing_folder, sweep
from afina.data.rows import Locations, decode
from afina.data.template import Row

_INDEX = np.dtype(
    [("end", "<u8"), ("prefix", "<u4"), ("number", "<u4")]
)  # where the row's tokens end, and its location
_ENTRY = struct.Struct("<QII")  # the same, to write one
_SUMS = "sums.json"  # of a folder in the cache: what is in it, by hash
_MOST_BYTES = 4 << 30  # of prepared rows that are kept for later runs
_TRIES = 3  # to find rows that other processes remove

T = TypeVar("T")


class RowsWriter:
    """Writes rows into `folder`: token ids and labels (32 bits each), an index, and sums."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with writing(folder):
            folder.mkdir(parents=True)
            self._ids, self._labels, self._index = (
                (folder / name).open("wb", 1 << 20) for name in ("ids", "labels", "index")
            )
        self._locations = Locations()
        self.count = self._end = self._labelled = self._most_labelled = 0

    def add(self, row: Row) -> None:
        """Raises `OutputError` where the disk is full."""
        self._end += len(row.input_ids)
        labelled = row.labelled
        self._labelled += labelled
        self._most_labelled = max(self._most_labelled, labelled)
        self.count += 1
        with writing(self._folder):
            self._ids.write(array("i", row.input_ids))
            self._labels.write(array("i", row.labels))
            self._index.write(_ENTRY.pack(self._end, *self._locations.encode(row.location)))

    def close(self) -> None:
        with writing(self._folder):
            for file in (self._ids, self._labels, self._index):
                file.close()
        sums = {"tokens": self._end, "labelled": self._labelled, "most_labelled": self._most_labelled}
        write_json(self._folder / "rows.json", sums | {"prefixes": self._locations.prefixes()})


class Rows(Sequence[Row]):
    """The rows that a `RowsWriter` wrote into `folder`. `lengths` are in tokens; `labelled` and `tokens` are sums.

    `temporary` is a folder that goes when the rows do.
    """

    def __init__(self, folder: Path, temporary: Path | None = None) -> None:
        facts = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
        self.tokens, self.labelled, self.most_labelled = (
            int(facts[name]) for name in ("tokens", "labelled", "most_labelled")
        )
        self._prefixes: list[str] = facts["prefixes"]
        size = (folder / "index").stat().st_size // _INDEX.itemsize
        self._index = np.memmap(folder / "index", _INDEX, "r", shape=(size,)) if size else np.empty(0, _INDEX)
        self._ids, self._labels = (self._opened(folder / name) for name in ("ids", "labels"))
        if temporary is not None:
            weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)
        self.lengths = np.diff(self._index["end"], prepend=np.uint64(0)).astype(np.int32)

    def _opened(self, path: Path) -> Any:
        file = path.open("rb", 0)
        weakref.finalize(self, file.close)
        return file

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, which: int) -> Row: ...
    @overload
    def __getitem__(self, which: slice) -> list[Row]: ...
    def __getitem__(self, which: int | slice) -> Row | list[Row]:
        if isinstance(which, slice):
            return [self[i] for i in range(*which.indices(len(self)))]
        end, prefix, number = self._index[which].tolist()
        count = int(self.lengths[which])
        ids, labels = (self._read(file, end - count, count) for file in (self._ids, self._labels))
        return Row(ids, labels, decode(self._prefixes[prefix], number))

    @staticmethod
    def _read(file: Any, at: int, count: int) -> list[int]:
        """By its place, for a thread that makes batches ahead reads the same file."""
        found: list[int] = np.frombuffer(os.pread(file.fileno(), 4 * count, 4 * at), np.int32).tolist()
        return found

    def digest(self) -> str:
        """SHA-256 of all token ids and labels."""
        digest = hashlib.sha256(self.lengths.tobytes())
        for file in (self._ids, self._labels):
            file.seek(0)
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()


def lengths(rows: Sequence[Row]) -> Sequence[int]:
    """The number of tokens of each row."""
    if isinstance(rows, Rows):
        return rows.lengths  # type: ignore[return-value]
    return [len(row.input_ids) for row in rows]


def _sums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file in `folder` and below it, by its path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / _SUMS)
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def _is_sound(folder: Path) -> bool:
    try:
        return bool(read_json(folder / _SUMS) == _sums(folder))
    except (InputError, OSError):
        return False


def kept_rows(cache: Path, key: str | None, write: Callable[[Path], None], read: Callable[[Path, Path | None], T]) -> T:
    """What `read` opens in the folder that `write` filled, now or for an earlier run: a folder of the cache by a key of
    everything that decides the rows. One whose files are not those that were written, by their hashes, is made again;
    the least recently used are evicted.

    Without a key (data whose content is not known beforehand), and where the cache cannot be written, the folder is in
    a temporary one, which `read` gets too: it is the reader's to remove.
    """
    for _ in range(_TRIES if key is not None else 0):
        folder = cache / "rows" / str(key)
        with suppress(InputError, OSError):  # another process has evicted it, or made it again
            if _is_sound(folder):
                with suppress(OSError):  # so that it counts as the newest
                    os.utime(folder)
                return read(folder, None)
        with ExitStack() as stack:
            try:
                new = stack.enter_context(replacing_folder(folder))
            except OSError:  # a cache that cannot be written costs the next run the same work, no more
                break
            write(new)
            with writing(folder):
                write_json(new / _SUMS, _sums(new))
                stack.close()
        with suppress(InputError, OSError):
            rows = read(folder, None)
            _evict(folder)
            return rows
    temporary = Path(tempfile.mkdtemp(prefix="afina-"))
    try:
        write(temporary / "rows")
        return read(temporary / "rows", temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _evict(newest: Path) -> None:
    sweep(newest.parent.glob(".*"))
    entries = []
    for folder in newest.parent.iterdir():
        with suppress(OSError):  # another process removes it
            if not folder.name.startswith("."):
                size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
                entries.append((folder.stat().st_mtime, size, folder))
    left = sum(size for _, size, _ in entries)
    for _, size, folder in sorted(entries):
        if left > _MOST_BYTES and folder != newest:
            shutil.rmtree(folder, ignore_errors=True)
            left -= size
