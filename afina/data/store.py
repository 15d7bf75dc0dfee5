"""Rows on disk: written one after another, read one at a time, so that memory does not grow with their number."""

import hashlib
import json
import os
import shutil
import struct
import tempfile
import time
import weakref
from array import array
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, overload

import numpy as np

from afina.core.errors import InputError, writing
from afina.core.files import read_json, sha256, write_json
from afina.data.rows import Locations, decode
from afina.data.template import Row

_INDEX = np.dtype(
    [("end", "<u8"), ("prefix", "<u4"), ("number", "<u4")]
)  # where the row's tokens end, and its location
_ENTRY = struct.Struct("<QII")  # the same, to write one
_SUMS = "sums.json"  # of a folder in the cache: what is in it, by hash
_MOST_BYTES = 4 << 30  # of prepared rows that are kept for later runs
_ABANDONED = 7 * 86_400  # seconds after which no process is still writing


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
        self._ids, self._labels = ((folder / name).open("rb", 0) for name in ("ids", "labels"))
        for file in (self._ids, self._labels):
            weakref.finalize(self, file.close)
        if temporary is not None:
            weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)
        self.lengths = np.diff(self._index["end"], prepend=np.uint64(0)).astype(np.int32)

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
        found = np.empty(count, np.int32)
        file.seek(4 * at)
        file.readinto(found)
        return found.tolist()

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


class RowCache:
    """Prepared rows in a folder of the cache, by a key of everything that decides them; the least recently used are
    evicted. A folder whose files are not those that were written, by their hashes, is made again.

    Without a key (data whose content is not known beforehand) the folder is `temporary`, and the caller's to remove.
    """

    def __init__(self, cache: Path, key: str | None) -> None:
        self.temporary = Path(tempfile.mkdtemp(prefix="afina-")) if key is None else None
        self._above = cache / "rows"
        self.folder = self.temporary / "rows" if self.temporary else self._above / str(key)

    def __enter__(self) -> Path | None:
        """A new folder to fill, or None where the rows are there already."""
        if self.folder.exists() and _is_sound(self.folder):
            with suppress(OSError):  # so that it counts as the newest
                os.utime(self.folder)
            return None
        try:
            self._new = self._make()
        except OSError:  # a cache that cannot be written costs the next run the same work, no more
            self.temporary = Path(tempfile.mkdtemp(prefix="afina-"))
            self.folder = self.temporary / "rows"
            self._new = self._make()
        return self._new

    def _make(self) -> Path:
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=self.folder.parent, prefix="."))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not hasattr(self, "_new"):
            return
        if kind is not None:
            shutil.rmtree(self.temporary or self._new, ignore_errors=True)
            return
        with writing(self.folder):
            if self.temporary is None:
                write_json(self._new / _SUMS, _sums(self._new))
            try:
                self._new.rename(self.folder)
            except OSError:
                if not self.folder.exists():  # otherwise another process was faster, with the same rows
                    raise
                shutil.rmtree(self._new, ignore_errors=True)
        if self.temporary is None:
            self._evict()

    def _evict(self) -> None:
        entries = []
        for folder in self._above.iterdir():
            with suppress(OSError):  # another process removes it
                if folder.name.startswith("."):  # being written, or left by a process that was killed
                    if time.time() - folder.stat().st_mtime > _ABANDONED:
                        shutil.rmtree(folder, ignore_errors=True)
                    continue
                size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
                entries.append((folder.stat().st_mtime, size, folder))
        left = sum(size for _, size, _ in entries)
        for _, size, folder in sorted(entries):
            if left > _MOST_BYTES and folder != self.folder:
                shutil.rmtree(folder, ignore_errors=True)
                left -= size
