"""Two that do something at the same time, held at every pair of their steps. Locks belong to open files, so threads
stand in for processes."""

import fcntl
import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from afina.core import files
from afina.core.errors import AfinaError

STEPS = (
    (Path, "rename"), (Path, "replace"), (Path, "mkdir"), (Path, "rmdir"), (Path, "unlink"), (Path, "touch"),
    (Path, "open"), (Path, "iterdir"), (os, "replace"), (os, "unlink"), (os, "rmdir"), (files, "_without_waiting"),
)  # fmt: skip


class Actor(threading.Thread):
    """Does its work up to its `stop`-th step, and the rest once it is let go."""

    def __init__(self, work: Callable[[], object], stop: int) -> None:
        super().__init__(daemon=True)
        self._work, self._left = work, stop
        self._waits, self._go = threading.Event(), threading.Event()
        self.held, self.result, self.error = False, None, None

    def run(self) -> None:
        try:
            self.result = self._work()
        except AfinaError as error:
            self.error = error
        finally:
            self._waits.set()

    def step(self) -> None:
        self._left -= 1
        if self._left == -1:
            self.held = True
            self._waits.set()
            assert self._go.wait(30)

    def lock(self, handle: int, how: int) -> None:
        """Waits for a lock as the system does, so that it is known."""
        while True:
            try:
                return _flock(handle, how | fcntl.LOCK_NB)
            except BlockingIOError:
                if how & fcntl.LOCK_NB:
                    raise
                self._waits.set()
                time.sleep(0.001)

    def to_its_stop(self) -> None:
        self.start()
        assert self._waits.wait(30)

    def on(self) -> None:
        """Goes on to its end, or until it waits for what the other has locked."""
        self._waits.clear()
        self._go.set()
        if self.is_alive():
            self._waits.wait(0.2)

    def to_its_end(self) -> None:
        self._go.set()
        self.join(30)
        assert not self.is_alive()


_flock = fcntl.flock


@contextmanager
def held_at_steps() -> Iterator[None]:
    """Within the block each actor counts what touches the disk."""

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object, **kwargs: object) -> object:
            actor = threading.current_thread()
            if isinstance(actor, Actor):
                actor.step()
            return real(*args, **kwargs)

        return step

    def flock(handle: int, how: int) -> None:
        actor = threading.current_thread()
        if not isinstance(actor, Actor):
            return _flock(handle, how)
        actor.step()
        return actor.lock(handle, how)

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in STEPS:
            patch.setattr(owner, name, counted(getattr(owner, name)))
        patch.setattr(os, "fsync", lambda handle: None)  # which takes most of the time
        patch.setattr(fcntl, "flock", flock)
        yield


def each_pair(
    folder: Path, works: Callable[[Path], tuple[Callable[[], object], Callable[[], object]]], every: int = 2
) -> Iterator[tuple[Path, Actor, Actor]]:
    """The two that `works` gives for a folder, after both went to their ends: each first one was held at every step
    with each second one at every second step (or `every` so many)."""
    for i in itertools.count():
        for j in itertools.count(i % every, every):
            place = folder / f"{i}-{j}"
            with held_at_steps():
                first, second = (Actor(work, stop) for work, stop in zip(works(place), (i, j), strict=True))
                first.to_its_stop()
                second.to_its_stop()
                first.on()
                second.to_its_end()
                first.to_its_end()
            yield place, first, second
            shutil.rmtree(place, ignore_errors=True)
            if not second.held:
                break
        if not first.held:
            break
    assert i > 2
