"""Work of the page that a test holds in its hand: the job `wait`, and processes that have the libraries at once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from forked import Forked, ForkedWorker

from afina.core.config import Result, Settings
from afina.core.errors import InputError, Interrupted
from afina.core.events import Listener, Progress, ignore
from afina.core.job import Job
from afina.core.process.interrupt import StopRequest
from afina.jobs import JOBS
from afina.ui.studio import work as works

PATIENCE = 120.0  # seconds after which a test gives up


class WaitSettings(Settings):
    file: Path
    """What it is to do is written here: `go`, `fail` or `crash`; `hang` is to let nobody stop it."""


class WaitResult(Result):
    steps: int


def wait(settings: WaitSettings, listener: Listener = ignore) -> WaitResult:
    """Tells of a step at a time until it is told to do otherwise."""
    stop, step = StopRequest(), 0
    print("it begins", flush=True)
    with stop.listening():
        while True:
            step += 1
            listener(Progress("waiting", step, 100))
            match settings.file.read_text() if settings.file.exists() else "":
                case "go":
                    return WaitResult(steps=step)
                case "fail":
                    raise InputError("it <failed>", "mend `it`")
                case "crash":
                    raise ValueError("a bug")
                case "hang":
                    pass
                case _ if stop.asked:
                    raise Interrupted("stopped where nothing is lost", "resume it")
            time.sleep(0.01)


WAIT = Job("wait", "waits", WaitSettings, WaitResult, wait)


class ForkedWork(Forked):
    """As the queue starts its processes; those that a test leaves end with it."""

    made: ClassVar[list["ForkedWork"]] = []

    def __init__(self, command: Sequence[str], *, stdout: Any, stderr: Any, cwd: Path, **_: Any) -> None:
        code = "import studio_works; studio_works.work()"
        super().__init__(command[-1:], cwd=cwd, stdout=stdout, stderr=stderr, code=code)
        self.made.append(self)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    @classmethod
    def end_all(cls) -> None:
        for each in cls.made:
            each.kill()
            if each.returncode is None:
                each.wait()
        cls.made.clear()


@contextmanager
def forking() -> Iterator[None]:
    """Inside the block work of the page begins with the libraries imported, and there is the heavy job `wait`."""
    with pytest.MonkeyPatch.context() as patch, JOBS.added(WAIT):
        patch.setattr(works, "subprocess", SimpleNamespace(Popen=ForkedWork, DEVNULL=subprocess.DEVNULL))
        patch.setattr(works, "HEAVY", works.HEAVY | {"wait"})
        yield
        ForkedWork.end_all()


def work() -> None:
    from afina.forecast import machines
    from afina.runs import worker
    from afina.ui.studio.worker import main

    worker.subprocess = SimpleNamespace(Popen=ForkedWorker, PIPE=subprocess.PIPE)
    machines.measured = lambda *_: machines._estimated(machines.PROCESSOR)  # which takes ten seconds

    if "wait" not in JOBS:
        JOBS.add(WAIT)
    sys.exit(main(Path(sys.argv[1])))


def serve() -> None:
    """`afina studio`, whose work has the libraries at once."""
    from afina.ui.cli import main

    works.subprocess = SimpleNamespace(Popen=ForkedWork, DEVNULL=subprocess.DEVNULL)
    sys.exit(main())


def until(holds: Callable[[], Any], what: str = "") -> Any:
    """What `holds` gives once it gives something."""
    end = time.monotonic() + PATIENCE
    while not (found := holds()):
        assert time.monotonic() < end, what or "it takes too long"
        time.sleep(0.01)
    return found


def gone(pid: int) -> bool:
    """Whether the process has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
