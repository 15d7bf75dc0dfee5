"""A run's folder while it is written: checked, locked, replaced only once the new run has an adapter."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from afina.core.errors import OutputError, writing
from afina.core.files import check_writable, check_writable_folder, write_json, write_jsonl
from afina.core.process.locks import alone, is_at, open_to_lock, take
from afina.core.process.temporary import MOVING, is_empty, put_back, remove, remove_at_once, sweep, sync, temporaries
from afina.core.text import command_line
from afina.core.tracker import TRACKERS
from afina.lora.peft_config import CONFIG
from afina.lora.peft_files import WEIGHTS
from afina.measure.evaluation import Evaluation
from afina.runs.tracking import ID_FILE

RUN_FILES = (
    "adapter",
    "config.yaml",
    "metrics.jsonl",
    "forecast.json",
    "evaluation.json",
    "predictions.jsonl",
    "rejected.jsonl",
    "report.html",
    "export",
    "checkpoints",
    ID_FILE,
)
PATIENCE = 1.0  # seconds in which who only looks at a run has put right what a kill left
CHECKPOINTS, FORMER = "checkpoints", ".former"


def _written() -> list[str]:
    """What a run may have written into its folder, its trackers included."""
    return [*RUN_FILES, *(name for tracker in TRACKERS for name in tracker.writes)]


class RunFolder:
    """A run folder that is being written, by one process at a time. A former run in it is only deleted once the new
    one has saved an adapter. Files that no run writes are neither moved nor deleted.

    What a killed process may leave, whenever it is killed, is told apart by names that come and go in one renaming:

    - `.*.part` are files that were not written to their end. They go, but where a process writes them now.
    - `.moving` holds files of a run on their way in, out or back. They belong into the folder.
    - `.former` holds a whole run, which a new one replaces. It goes once the new one has an adapter, and comes back
      where that has saved nothing.

    `settle` finishes or undoes it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._former, self._moving = folder / FORMER, folder / MOVING
        self._all_new = False  # nothing of a former run is in the folder

    @contextmanager
    def locked(self, patient: bool = True) -> Iterator[None]:
        """Makes the folder, and keeps other processes from writing a run into it. Raises `OutputError` where one does
        (`patient`: still does after a second), or where there can be no folder.

        The system releases the lock when a process dies, however it dies. File systems without locks, and Windows,
        have none. A folder that is still empty in the end is removed.
        """
        absent = [each for each in [self.folder, *self.folder.absolute().parents] if not os.path.lexists(each)]
        above = [self.folder, *self.folder.absolute().parents][len(absent)]
        if not above.is_dir():
            what = f"{above} is a file, not a folder" if absent else "it is a file, expected a folder"
            raise OutputError(f"--out {self.folder}: {what}", "choose another --out")
        with writing(self.folder):
            lock = self._lock(PATIENCE if patient else 0.0)
        try:
            yield
        finally:
            for each in [self.folder, *absent[1:]]:
                with suppress(OSError):  # not empty: a run is in it
                    each.rmdir()
            if lock is not None:
                os.close(lock)

    def _lock(self, seconds: float) -> int | None:
        """A handle of the folder that holds its lock; None where there are no locks."""
        begun = time.monotonic()
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = open_to_lock(self.folder)
            if handle is None or (taken := take(handle)) is None:
                return handle
            if taken and is_at(handle, self.folder):
                return handle
            os.close(handle)
            if taken:
                continue  # the process that had the lock has removed its empty folder: the next one's counts
            if time.monotonic() - begun >= seconds:
                raise OutputError(f"another process is training into {self.folder}", "wait for it, or stop it")
            time.sleep(0.01)

    def settle(self, resuming: bool = False) -> None:
        """Finishes or undoes what a killed process left. A new run that can be resumed stays, the former one beside it;
        with `resuming`, one that has only its settings too."""
        with writing(self.folder):
            sweep(temporaries(self.folder))
            put_back(self.folder)
            if not self._former.is_dir():
                return
            if self._has_adapter():
                self.commit()
            elif not any((self.folder / CHECKPOINTS).glob("step-*")) and not (
                resuming and (self.folder / "config.yaml").exists()
            ):
                self.roll_back()

    def check(self, overwrite: bool) -> None:
        """Raises `OutputError` unless a run may be written here: the folder is empty, or holds a run to overwrite."""
        if not any(self.folder.iterdir()):
            check_writable(self.folder / "config.yaml")
        elif not (self.folder / "config.yaml").exists():
            raise OutputError(f"--out {self.folder} holds files that are not from a run", "choose another --out")
        elif not overwrite and not is_complete(self.folder):
            former = f"; the run that it was to replace is in {self._former}" if self._former.is_dir() else ""
            raise OutputError(
                f"--out {self.folder} holds a run that was cut off{former}",
                f"resume it with `{command_line('train', '--resume', self.folder)}`, or replace it with --overwrite",
            )
        elif not overwrite:
            raise OutputError(
                f"--out {self.folder} already holds a run", "choose another --out, or replace it with --overwrite"
            )

    def start(self) -> None:
        """Sets a run in the folder aside, or drops it where it has set one aside itself and is not complete."""
        with writing(self.folder):
            present = [self.folder / name for name in _written() if os.path.lexists(self.folder / name)]
            if self._former.is_dir():
                for path in present:
                    remove(path)
            elif present:
                self._moving.mkdir()
                for path in present:
                    path.rename(self._moving / path.name)
                self._moving.rename(self._former)
                sync(self.folder)
            self._all_new = True

    def commit(self) -> None:
        """The new run has an adapter: the former run is deleted."""
        if self._former.is_dir():
            with suppress(OSError):
                remove_at_once(self._former)

    def roll_back(self) -> None:
        """Where the new run failed before it had an adapter, its files are deleted, and the former run's come back,
        however far they were moved away. What is in the folder is the former run's until all of that is in `.former`.
        """
        if not self.folder.is_dir():
            return
        put_back(self.folder)
        if self._has_adapter() or not (self._all_new or self._former.is_dir()):
            return
        for name in _written():
            remove(self.folder / name)
        if self._former.is_dir():
            self._former.rename(self._moving)
        put_back(self.folder)

    def _has_adapter(self) -> bool:
        return all((self.folder / "adapter" / name).exists() for name in (WEIGHTS, CONFIG))


def settle(folder: Path) -> None:
    """`RunFolder.settle` before the folder is read; nothing where a process is training there, or where nothing may be
    written."""
    if any((folder / name).is_dir() for name in (FORMER, MOVING)) or temporaries(folder):
        run = RunFolder(folder)
        with suppress(OutputError), run.locked(patient=False):
            run.settle()


def record(folder: Path, evaluation: Evaluation) -> None:
    """Writes an evaluation and, of a run, the pages about it into `folder`, replacing the previous ones.
    `evaluation.json` is written last: where it is the others are."""
    from afina.measure.pages.card import write_card
    from afina.measure.pages.report import write_report

    found = evaluation.json()
    write_jsonl(folder / "predictions.jsonl", evaluation.predictions)
    if (folder / "config.yaml").exists():
        write_card(folder, found)
        write_report(folder, found)
    write_json(folder / "evaluation.json", found)


def is_complete(folder: Path) -> bool:
    """Whether the run in `folder` finished: it is evaluated, and its checkpoints, which go last, are gone."""
    return (folder / "evaluation.json").exists() and not (folder / CHECKPOINTS).exists()


def check_new(out: Path) -> None:
    """Raises `OutputError` unless `out`, for something new, is empty or absent, and can be written."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"--out {out} is a file, and a new folder is written", "choose another --out")
    if out.exists():
        with alone(out, wait=False) as free:
            if not free:
                raise OutputError(f"another process is writing into {out}", "wait for it, or choose another --out")
            if not is_empty(out):
                raise OutputError(f"--out {out} is not empty", "choose another --out")
    check_writable_folder(out)
