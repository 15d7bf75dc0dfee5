"""A run's folder while it is written: checked, locked, replaced only once the new run has an adapter."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from afina.core.errors import OutputError, writing
from afina.core.files import check_writable, write_json, write_jsonl
from afina.core.tracker import TRACKERS
from afina.measure.evaluation import Evaluation

RUN_FILES = (
    "adapter",
    "config.yaml",
    "metrics.jsonl",
    "forecast.json",
    "evaluation.json",
    "predictions.jsonl",
    "rejected.jsonl",
    "report.html",
    "checkpoints",
)
LOCK = ".lock"


def _written() -> list[str]:
    """What a run may have written into its folder, its trackers included."""
    return [*RUN_FILES, *(name for tracker in TRACKERS for name in tracker.writes)]


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raises `OutputError` unless a run may be written to `folder`: it is new, empty, or a run to be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--out {folder} is a file, expected a folder", "choose another --out")
    above = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    if not above.is_dir():
        raise OutputError(f"--out {folder}: {above} is a file, not a folder", "choose another --out")
    if not folder.exists():
        check_writable(folder / "config.yaml")
    # A killed process leaves its lock file behind, unlocked.
    if not folder.exists() or all(path.name == LOCK for path in folder.iterdir()):
        return
    if not (folder / "config.yaml").exists():
        raise OutputError(f"--out {folder} holds files that are not from a run", "choose another --out")
    if not overwrite and not (folder / "evaluation.json").exists():
        raise OutputError(
            f"--out {folder} holds a run that was cut off",
            f"resume it with `afina train --resume {folder}`, or replace it with --overwrite",
        )
    if not overwrite:
        raise OutputError(f"--out {folder} already holds a run", "choose another --out, or replace it with --overwrite")


class RunFolder:
    """A run folder that is being written. A previous run in it is only deleted once the new one has saved an adapter.

    Files that no run writes are neither moved nor deleted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._previous = folder / ".former"
        self.committed = False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from training into the folder. Raises `OutputError` where one does already.

        The system releases the lock when a process dies, however it dies. Without such locks (Windows) nothing is
        locked.
        """
        try:
            import fcntl
        except ImportError:
            yield
            return
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / LOCK).open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise OutputError(
                    f"another process is training into {self.folder}", "wait for it, or stop it"
                ) from error
            try:
                yield
            finally:
                (self.folder / LOCK).unlink(missing_ok=True)
                with suppress(OSError):  # not empty: a run is in it
                    self.folder.rmdir()

    def start(self) -> None:
        """Creates the folder and sets a previous run in it aside."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            present = [self.folder / name for name in _written() if (self.folder / name).exists()]
            if present:
                self._previous.mkdir(exist_ok=True)
            for path in present:
                path.rename(self._previous / path.name)

    def commit(self) -> None:
        """The new run has an adapter: the previous run is deleted."""
        if not self.committed:
            shutil.rmtree(self._previous, ignore_errors=True)
            self.committed = True

    def roll_back(self) -> None:
        """The new run failed before it had an adapter: its files are deleted, the previous run's restored."""
        if self.committed or not self.folder.is_dir():
            return
        for name in _written():
            _remove(self.folder / name)
        if self._previous.is_dir():
            for path in self._previous.iterdir():
                path.rename(self.folder / path.name)
            self._previous.rmdir()
        with suppress(OSError):  # not empty: somebody's files
            self.folder.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def record(folder: Path, evaluation: Evaluation) -> None:
    """Writes an evaluation into the run folder, replacing the previous one."""
    write_jsonl(folder / "predictions.jsonl", evaluation.predictions)
    write_json(folder / "evaluation.json", evaluation.json())


def is_complete(folder: Path) -> bool:
    """Whether the run in `folder` finished: of the files that cannot be made again, the evaluation is written last."""
    return (folder / "evaluation.json").exists()


def check_new(out: Path) -> None:
    """Raises `OutputError` unless `out`, for something new, is empty or absent, and can be written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"--out {out} is not empty", "choose another --out")
    check_writable(out / "adapter_config.json")
