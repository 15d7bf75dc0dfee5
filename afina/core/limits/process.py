"""A limit of time and memory on code that is not ours, such as a template: in this process (`bounded`), or in a child,
which may also die of it (`in_child`)."""

import faulthandler
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_TICK = 0.25  # seconds of work between two looks at the time


class Exceeded(BaseException):
    """What was to be done took too long. No `Exception`, so that no library takes it for one of its own."""


class TooMuch(Exception):
    """What was to be done in a child took too much; `str` says of what."""


class Failed(Exception):
    """What was to be done in a child raised what `str` says, a `remedy` with it where it was an error of Afina's."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem)
        self.remedy = remedy


def in_child(work: Callable[[], Any], seconds: float, more_bytes: int) -> Any:
    """What `work` gives, which is JSON, from a copy of this process that prints nothing and may hang, use up its memory
    or die in code of other languages, where nothing else stops it.

    `seconds` are of processor time. Raises `TooMuch` and `Failed`. Where processes cannot be copied, the work is done
    here.
    """
    if not hasattr(os, "fork"):
        return work()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        _work_and_leave(work, seconds, more_bytes, write)
    os.close(write)
    try:
        with open(read, "rb") as pipe:
            told = pipe.read()
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        raise TooMuch(f"{seconds:.0f} s")
    if not told:
        raise TooMuch(f"{more_bytes >> 20} MB")  # a failed allocation in another language ends the process
    result = json.loads(told)
    if "problem" in result:
        raise Failed(result["problem"], result["remedy"])
    return result["value"]


def _work_and_leave(work: Callable[[], Any], seconds: float, more_bytes: int, write: int) -> None:
    """In the child: nothing of what it does, or how it ends, reaches what it was copied from."""
    from afina.core.errors import AfinaError, brief

    try:
        faulthandler.disable()
        null = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):
            os.dup2(null, standard)
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGXCPU):
            signal.signal(each, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds) + 1))
        try:
            with _limit.set(more_bytes):
                told = {"value": work()}
        except AfinaError as error:
            told = {"problem": "\n".join(error.problems), "remedy": error.remedy}
        except MemoryError:
            os._exit(1)
        except BaseException as error:  # code in Rust that gives up raises what is no Exception
            told = {"problem": brief(error), "remedy": ""}
        with open(write, "w", encoding="ascii") as pipe:
            json.dump(told, pipe)
    finally:
        os._exit(0)


class _Here(threading.local):
    until: float | None = None  # when what this thread runs now has to be done; None outside of all blocks


_here = _Here()


@contextmanager
def bounded(seconds: float, more_bytes: int) -> Iterator[None]:
    """Raises `Exceeded` where the block runs for more than `seconds`, and `MemoryError` where the process grows by more
    than `more_bytes`.

    A block within another one costs next to nothing, and has its own time and the outer one's memory: around many that
    follow one another, stand an outer one of infinite time. Time is limited in the main thread, in what runs Python,
    matches patterns or multiplies numbers; memory on Linux.
    """
    before, until = _here.until, time.monotonic() + seconds
    if before is not None:
        _here.until = min(before, until)
        try:
            yield
        finally:
            _here.until = before
        return
    with _limit.set(more_bytes), _ticking():
        _here.until = until
        try:
            yield
        finally:
            _here.until = None


@contextmanager
def _ticking() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    before, hook = signal.signal(signal.SIGVTALRM, _look), sys.unraisablehook

    def unraisable(problem: Any) -> None:  # within a callback, where the next look at the time will raise it
        if not isinstance(problem.exc_value, Exceeded):
            hook(problem)

    sys.unraisablehook = unraisable
    signal.setitimer(signal.ITIMER_VIRTUAL, _TICK, _TICK)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        if callable(before):  # else ours stays: a last signal may be on its way, and by default it ends the process
            signal.signal(signal.SIGVTALRM, before)
        sys.unraisablehook = hook


def _look(number: int, frame: FrameType | None) -> None:
    if _here.until is not None and time.monotonic() > _here.until:
        raise Exceeded


class _Limit:
    """The process's limit of memory: one, which blocks of several threads share. The first sets it, and the last puts
    back what was before."""

    def __init__(self) -> None:
        self._lock, self._blocks, self._before = threading.Lock(), 0, (0, 0)

    @contextmanager
    def set(self, more_bytes: int) -> Iterator[None]:
        used = _data_bytes()
        if used is None:
            yield
            return
        with self._lock:
            if not self._blocks:
                soft, hard = self._before = resource.getrlimit(resource.RLIMIT_DATA)
                wanted = [used + more_bytes, *(each for each in (soft, hard) if each != resource.RLIM_INFINITY)]
                resource.setrlimit(resource.RLIMIT_DATA, (min(wanted), hard))
            self._blocks += 1
        try:
            yield
        finally:
            with self._lock:
                self._blocks -= 1
                if not self._blocks:
                    resource.setrlimit(resource.RLIMIT_DATA, self._before)


_limit = _Limit()


def _data_bytes() -> int | None:
    """What the process has of the memory that RLIMIT_DATA limits; None where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return None
