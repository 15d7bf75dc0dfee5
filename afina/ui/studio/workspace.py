"""The folder that the page works in: data, runs, exports, its own records. Nothing outside it is read or written."""

import os
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from afina.core.errors import OutputError, writing
from afina.core.files import read_json, write_json
from afina.core.process.locks import open_to_lock, take
from afina.data.files.file import suffix_of
from afina.data.formats import suffixes
from afina.ui.studio.words import Refused

_OWN = ".studio"
_SECRET_BYTES = 32
_LONGEST_NAME = 120
_RESERVED = frozenset('/\\:*?"<>|')


class Workspace:
    """`data`: files of examples; `runs`: what trainings, comparisons and searches wrote; `exports`: models for other
    programs; `own`: the page's records. Raises `OutputError` where it cannot be written, or another page has it."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.data, self.runs, self.exports = (self.root / name for name in ("data", "runs", "exports"))
        self.own = self.root / _OWN
        self.work, self._readings, self._refusals = (self.own / name for name in ("work", "data", "refused"))
        with writing(self.root):
            for folder in (self.data, self.runs, self.exports, self.work, self._readings, self._refusals):
                folder.mkdir(parents=True, exist_ok=True)
            self.own.chmod(0o700)
        self._coming, self._naming = set[Path](), Lock()
        self._lock = open_to_lock(self.own)
        if self._lock is not None and take(self._lock) is False:
            self.close()
            raise OutputError(f"another page is open on {self.root}", "use it, end it, or give another --workspace")

    def close(self) -> None:
        """Lets another page have it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def secret(self) -> bytes:
        """What the cookies and forms of this workspace are made of; it lasts, so that a new server knows its tabs."""
        path = self.own / "secret"
        with writing(path):
            try:
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                found = path.read_bytes()
                if len(found) == _SECRET_BYTES:
                    return found
                path.unlink()
                return self.secret()
            with os.fdopen(handle, "wb") as file:
                file.write(made := secrets.token_bytes(_SECRET_BYTES))
        return made

    def key_file(self, name: str) -> Path:
        """The file `name` among the page's own records, with a key that a model is served with; it lasts, so that what
        knows it goes on working."""
        path = self.own / name
        with writing(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
            with os.fdopen(handle, "r+") as file:
                if not file.read().strip():
                    file.write(f"{secrets.token_urlsafe(24)}\n")
        return path

    def data_files(self) -> list[Path]:
        """Files of examples in the workspace and its folder `data`, by name."""
        found = {path.name: path for folder in (self.root, self.data) for path in _files(folder)}
        return [found[name] for name in sorted(found, key=str.lower)]

    def data_file(self, name: str) -> Path:
        """Raises `Refused` where there is none of this name."""
        for path in self.data_files():
            if path.name == name:
                return path
        raise Refused("no_file", name=name)

    def usable_files(self) -> list[Path]:
        """Files of examples without those that could not be read."""
        return [path for path in self.data_files() if self.refusal(path) is None]

    @contextmanager
    def new_data_file(self, name: str) -> Iterator[Path]:
        """Where a file that is brought goes, which the block writes: under its own name, with a number where that is
        taken, or is another's that comes meanwhile."""
        plain = self.checked_name(name)
        stem, dot, rest = plain.partition(".")
        with self._naming:
            names = (plain if number == 1 else f"{stem}-{number}{dot}{rest}" for number in range(1, 10_000))
            path = next((path for each in names if self._is_free(path := self.data / each)), None)
            if path is None:
                raise Refused("too_many", name=plain)
            self._coming.add(path)
        try:
            yield path
        finally:
            self._coming.discard(path)

    def _is_free(self, path: Path) -> bool:
        return path not in self._coming and not any(map(os.path.lexists, (path, self.root / path.name)))

    def run(self, name: str) -> Path:
        """The run `name`, which may lie in a comparison or a search: `sweep/lora`. Raises `Refused`."""
        path = self.runs
        for part in name.split("/"):
            path /= self.checked_name(part)
        if path.is_symlink() or not path.is_dir() or not path.resolve().is_relative_to(self.runs.resolve()):
            raise Refused("no_run", name=name)
        return path

    def run_name(self, path: Path) -> str:
        """The name of a run's folder, as `run` takes it."""
        return path.resolve().relative_to(self.runs.resolve()).as_posix()

    def new_folder(self, folder: Path, name: str, taken: Collection[str] = ()) -> Path:
        """`name` in `runs` or `exports`, with a number where it is `taken` or there already."""
        plain = self.checked_name(name)
        for number in range(1, 100_000):
            path = folder / (plain if number == 1 else f"{plain}-{number}")
            if path.name not in taken and not os.path.lexists(path):
                return path
        raise Refused("too_many", name=plain)

    def reading(self, name: str) -> dict[str, Any]:
        """How a file is read, as it was said on the page: settings of data by name."""
        path = self._readings / f"{self.checked_name(name)}.json"
        found = read_json(path) if path.is_file() else {}
        return found if isinstance(found, dict) else {}

    def keep_reading(self, name: str, settings: dict[str, Any]) -> None:
        write_json(self._readings / f"{self.checked_name(name)}.json", settings)

    def refusal(self, path: Path) -> dict[str, Any] | None:
        """Why a file of data could not be read when it was last looked at, if it is as it was then: `kind`, `problems`
        and `remedy`."""
        record = self._refusals / f"{path.name}.json"
        found = read_json(record) if record.is_file() else {}
        return found["error"] if found.get("changed") == path.stat().st_ctime_ns else None

    def keep_refusal(self, path: Path, error: dict[str, Any] | None) -> None:
        """Keeps it, or with None forgets it."""
        record = self._refusals / f"{path.name}.json"
        if error is not None:
            write_json(record, {"changed": path.stat().st_ctime_ns, "error": error})
        elif record.exists():
            record.unlink()

    @staticmethod
    def checked_name(name: str) -> str:
        """A name that is one file's or folder's. Raises `Refused`."""
        bad = not name.isprintable() or name != name.strip() or name.startswith(".") or _RESERVED & set(name)
        if bad or not 0 < len(name.encode()) <= _LONGEST_NAME:
            raise Refused("no_name", name=name[:80], bytes=_LONGEST_NAME)
        return name


def holds_examples(path: Path) -> bool:
    """Whether a file is one of examples, by its name."""
    return suffix_of(path) in suffixes()


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_file() and not path.is_symlink() and not path.name.startswith(".") and holds_examples(path):
            yield path
