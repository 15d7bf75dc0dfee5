"""Threads spin while they wait for one another, but not beside other programs.

A training step is a thousand pieces of work that all threads share. Threads that sleep in between wake up for each,
which takes a tenth of the step; threads that spin keep the processor from other programs, and are kept from it when
they have work. So they spin for as long as they get the processor whenever they want it: Linux counts how long each
thread waits for that.

GNU's runtime does not let a program say how long its threads spin. But they do not while it has more threads than there
are processors (`gomp_throttled_spin_count_var` in its source): a few that sleep, of no use otherwise, are the switch.
"""

import ctypes
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from afina.core.process import runtime

_SECONDS = 0.5  # between two looks
_BESIDE = 0.1  # seconds for which a thread waited for a processor, in a second: alone it is a hundredth
_CALM = 4  # looks without that, until threads spin again
_started = threading.Lock()  # held from the first call on


def share_the_processor() -> None:
    """From the first call on, this process looks whether it has the processor for itself; no more than once a process,
    and not where the user's environment says how threads wait, or where nothing could be seen."""
    if runtime.watched and _started.acquire(blocking=False):
        threading.Thread(target=_watch, name="afina-neighbours", daemon=True).start()


def waited() -> dict[str, int]:
    """Nanoseconds for which each thread of this process has waited for a processor."""
    found = {}
    with suppress(OSError):  # no file can be opened just now
        for thread in Path("/proc/self/task").iterdir():
            with suppress(OSError):  # it has ended
                found[thread.name] = int((thread / "schedstat").read_text().split()[1])
    return found


class Neighbours:
    """Whether others want the processor, from what threads have `waited` by each look."""

    def __init__(self, waited: Callable[[], dict[str, int]] = waited) -> None:
        self._waited, self._before, self._calm = waited, waited(), _CALM

    def look(self, seconds: float) -> bool:
        """After so many seconds."""
        now = self._waited()
        # The longest, for which all others wait: what many threads wait by themselves adds up to more.
        delay = max((each - self._before.get(thread, each) for thread, each in now.items()), default=0) / 1e9
        self._before, self._calm = now, 0 if delay > _BESIDE * seconds else self._calm + 1
        return self._calm < _CALM


def _watch() -> None:
    library = ctypes.CDLL(None)
    if not hasattr(library, "GOMP_parallel"):  # torch has another runtime, which goes by OMP_WAIT_POLICY
        return
    neighbours, sleepers = Neighbours(), None
    begun = time.monotonic()
    while True:
        time.sleep(_SECONDS)
        before, begun = begun, time.monotonic()
        beside = neighbours.look(begun - before)
        if beside and sleepers is None:
            sleepers = _Sleepers(library)
        elif sleepers is not None and not beside:
            sleepers.end()
            sleepers = None


class _Sleepers:
    """More threads of the runtime than there are processors, which sleep until the `end`. `library`: what the process
    has loaded."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._over = threading.Event()
        self._leader = threading.Thread(target=self._run, args=(library,), name="afina-sleepers", daemon=True)
        self._leader.start()

    def _run(self, library: ctypes.CDLL) -> None:
        # Each thread of the team frees NULL, and then waits for more.
        library.GOMP_parallel(library.free, None, ctypes.c_uint((os.cpu_count() or 1) + 1), ctypes.c_uint(0))
        self._over.wait()

    def end(self) -> None:
        self._over.set()
        self._leader.join()  # the runtime ends a team with its leader
