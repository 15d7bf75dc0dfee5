"""Work that the page asks for: a record in a folder each, done by a process of its own, one heavy job at a time.

The folder of a piece of work holds `work.json` (the job, its settings, what it is about), then `process.json` (who does
it), `events.jsonl` (what happens, one event a line), `log` (what the process printed), `stopping` once it was asked to
stop, and in the end `result.json` or `error.json`. Its state is read from these alone, and from whether that process
lives, which holds the folder's lock.
"""

import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock, RLock
from typing import Any, Literal

import psutil

from afina.core.config import Settings, build, command
from afina.core.errors import InputError
from afina.core.events import Event, Notice, parse
from afina.core.files import read_json, write_json
from afina.core.process.children import python
from afina.core.process.locks import locked_by_another
from afina.core.process.temporary import remove
from afina.jobs import JOBS
from afina.ui.studio.words import Refused

State = Literal["waiting", "running", "done", "failed", "stopped", "died"]
ENDED: tuple[State, ...] = ("done", "failed", "stopped", "died")
HEAVY = frozenset({"train", "train --resume", "compare", "tune", "choose", "eval", "export"})
FORECASTS = frozenset({"fit"})  # which measure the machine where nobody has: beside another, wrongly
SERVING = "serve"
_LISTENING = "listening at "  # what a server says before its address
_SAME_START = 2.0  # seconds by which two readings of when a process began may differ, where there are no locks
_TAIL = 4_000  # bytes of the log that are shown
_KEPT = 200  # pieces of heavy work that have ended, and as many others, of which the records stay
_TWICE = 1.0  # seconds after a stop in which another one is the second click of two
_STOPPED = {"kind": "Interrupted", "problems": ["interrupted"], "remedy": ""}


class _Told:
    """The events in a file that grows: each line is read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at, self._events, self._lock = 0, list[Event](), Lock()

    def read(self) -> list[Event]:
        with self._lock:
            lines, self._at = whole_lines(self.path, self._at)
            for line in lines:
                with suppress(ValueError, LookupError, TypeError, AttributeError):
                    self._events.append(parse(json.loads(line)))
            return list(self._events)


def whole_lines(path: Path, at: int) -> tuple[list[bytes], int]:
    """The whole lines of a file from byte `at` on, and where they end."""
    if not path.exists() or path.stat().st_size <= at:
        return [], at
    with path.open("rb") as file:
        file.seek(at)
        content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    return whole.splitlines(), at + len(whole)


@dataclass(frozen=True)
class Work:
    """One piece of work. `about` is the name of the run or file that it is about."""

    folder: Path
    _ended: list[State] = field(default_factory=list, init=False, compare=False, repr=False)  # once it is known

    @property
    def id(self) -> str:
        return self.folder.name

    @cached_property
    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = read_json(self.folder / "work.json")
        return found

    @cached_property
    def is_whole(self) -> bool:
        """Whether the record is one: somebody may have damaged it, or it is of another version."""
        try:
            return self.record["job"] in JOBS and isinstance(self.record["settings"], dict) and "about" in self.record
        except (InputError, LookupError, TypeError):
            return False

    @property
    def job(self) -> str:
        return str(self.record["job"])

    @property
    def about(self) -> str:
        return str(self.record["about"])

    @property
    def asked_at(self) -> float:
        """When it was recorded, in seconds since the epoch."""
        return (self.folder / "work.json").stat().st_mtime

    @property
    def heavy(self) -> bool:
        return self.job in HEAVY

    @property
    def state(self) -> State:
        if end := self._end:
            return end
        if not (self.folder / "process.json").exists():
            return "waiting"
        return "running" if self.process else self._end or "died"  # it may have ended since we looked

    @property
    def _end(self) -> State | None:
        """As its process told it; what has ended is not looked at again."""
        if self._ended:
            return self._ended[0]
        if (self.folder / "result.json").exists():
            self._ended.append("done")
        elif (self.folder / "error.json").exists():
            self._ended.append("stopped" if self.error["kind"] == _STOPPED["kind"] else "failed")
        return next(iter(self._ended), None)

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def stopping(self) -> bool:
        """It was asked to stop, and has not yet."""
        return (self.folder / "stopping").exists() and not self.ended

    @property
    def process(self) -> psutil.Process | None:
        """Who does it, if it lives: it holds the folder's lock. Where there are no locks, a process of its number that
        began when it did; the clock that says so may be set meanwhile."""
        try:
            told = read_json(self.folder / "process.json")
            found = psutil.Process(int(told["pid"]))
            same = locked_by_another(self.folder)
            if same is None:
                same = abs(found.create_time() - float(told["began"])) < _SAME_START
            return found if same and found.status() != psutil.STATUS_ZOMBIE else None
        except (InputError, psutil.Error, KeyError, TypeError, ValueError):
            return None

    @property
    def result(self) -> Any:
        return read_json(self.folder / "result.json")

    @property
    def error(self) -> dict[str, Any]:
        """`kind`, `problems` and `remedy` of what it ended with."""
        found: dict[str, Any] = read_json(self.folder / "error.json")
        return found

    @property
    def settings(self) -> dict[str, Any]:
        found: dict[str, Any] = self.record["settings"]
        return found

    @property
    def command(self) -> str:
        """The same in a terminal."""
        job = JOBS[self.job].load()
        return command(self.job.partition(" --")[0], build(job.settings, self.settings))

    @property
    def log(self) -> str:
        """The end of what its process printed."""
        path = self.folder / "log"
        if not path.exists():
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            return file.read().decode(errors="replace")

    def events(self) -> list[Event]:
        """What happened so far. Of a long training while it runs only what is new is read."""
        if not self.ended:
            return self._told.read()
        self.__dict__.pop("_told", None)
        return _Told(self.folder / "events.jsonl").read()

    @property
    def address(self) -> str:
        """Where it serves, as it told once it listened, or nothing."""
        told = (each.text for each in reversed(self.events()) if isinstance(each, Notice))
        return next((text.removeprefix(_LISTENING) for text in told if text.startswith(_LISTENING)), "")

    @cached_property
    def _told(self) -> _Told:
        return _Told(self.folder / "events.jsonl")


class Queue:
    """The work of a workspace. `look` starts what may start: of heavy work one piece at a time, and of forecasts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._works: dict[str, Work] = {}
        self._lock = RLock()

    def add(self, job: str, settings: dict[str, Any] | Settings, about: str = "") -> Work:
        """Records the work, and starts it as soon as it may. Raises `SettingsError` where the settings are wrong."""
        listed = JOBS[job].load()
        checked = settings if isinstance(settings, Settings) else build(listed.settings, settings)
        folder = self.folder / f"{time.time_ns() // 1_000_000:013d}-{secrets.token_hex(3)}"
        folder.mkdir()
        dumped = checked.model_dump(mode="json", exclude_unset=True)
        write_json(folder / "work.json", {"job": job, "about": about, "settings": dumped})
        self.look()
        return self[folder.name]

    def __getitem__(self, id: str) -> Work:
        """Raises `Refused` where there is no such work."""
        found = next((work for work in self.all() if work.id == id), None)
        if found is None:
            raise Refused("no_work", id=id[:40])
        return found

    def all(self) -> list[Work]:
        """The newest first, without those whose record is damaged."""
        with self._lock:
            ids = sorted(os.listdir(self.folder), reverse=True)
            known = {id: self._works.get(id) or Work(self.folder / id) for id in ids}
            self._works = {id: work for id, work in known.items() if work.is_whole}
            return list(self._works.values())

    def of(self, about: str, jobs: Sequence[str], which: Callable[[Work], bool] = lambda _: True) -> Work | None:
        """The newest work of these jobs on `about`, of those for `which` that holds."""
        return next((work for work in self.all() if work.about == about and work.job in jobs and which(work)), None)

    @property
    def running(self) -> Work | None:
        """The heavy work that is being done."""
        return next((work for work in self.all() if work.heavy and self._is_running(work)), None)

    @property
    def waiting(self) -> list[Work]:
        """Heavy work that waits, in its order."""
        return [work for work in reversed(self.all()) if work.heavy and self._is_waiting(work)]

    @property
    def servers(self) -> list[Work]:
        """Models that answer at an address, or will: for programs and in chats."""
        return [work for work in self.all() if work.job == SERVING and not work.ended]

    def look(self) -> None:
        """Starts what may start, and forgets the oldest of what has ended."""
        with self._lock:
            for id, process in list(self._started.items()):
                if process.poll() is not None:
                    del self._started[id]
                    self._note_death(Work(self.folder / id), process.returncode)
            ended = [work for work in self.all() if work.ended]
            for heavy in (True, False):
                for work in [each for each in ended if each.heavy == heavy][_KEPT:]:
                    remove(work.folder)
            for work in reversed(self.all()):
                if self._is_waiting(work) and not self._is_kept_waiting(work):
                    self._start(work)

    def stop(self, work: Work) -> None:
        """Asks it to stop where nothing is lost; a second time ends it at once. What waits goes."""
        with self._lock:
            if work.state == "waiting":
                if begun := self._started.get(work.id):  # it has done nothing yet
                    begun.kill()
                write_json(work.folder / "error.json", _STOPPED)
            elif process := work.process:
                asked = work.folder / "stopping"
                if not asked.exists() or time.time() - asked.stat().st_mtime > _TWICE:
                    process.send_signal(signal.SIGINT)
                    asked.touch()

    def _is_kept_waiting(self, work: Work) -> bool:
        alike = HEAVY if work.heavy else FORECASTS if work.job in FORECASTS else ()
        return any(other.job in alike and self._is_running(other) for other in self.all())

    def _is_waiting(self, work: Work) -> bool:
        return work.state == "waiting" and work.id not in self._started

    def _is_running(self, work: Work) -> bool:
        return work.state == "running" or (work.state == "waiting" and work.id in self._started)

    def _start(self, work: Work) -> None:
        with (work.folder / "log").open("ab") as log:
            self._started[work.id] = subprocess.Popen(
                python("-m", "afina.ui.studio.worker", str(work.folder)),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder.parents[1],
                start_new_session=True,  # it outlives the page
            )  # fmt: skip

    @staticmethod
    def _note_death(work: Work, code: int) -> None:
        """Of a process that ended before it could tell who it is."""
        if work.state == "waiting":
            problem = f"its process ended with code {code} before it began"
            write_json(work.folder / "error.json", {"kind": "RunFailed", "problems": [problem], "remedy": ""})
