"""Two that want one run folder, held at every pair of their steps. Locks belong to open files, so threads stand in for
processes."""

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from runs.test_folder import FILES, whose, write

from afina.core.errors import AdapterError, OutputError
from afina.runs.facts import adapter_folder
from afina.runs.folder import FORMER, MOVING, RunFolder

fcntl = pytest.importorskip("fcntl")
STEPS = (
    (Path, "rename"), (Path, "mkdir"), (Path, "rmdir"), (Path, "unlink"), (Path, "write_text"), (Path, "iterdir"),
    (os, "unlink"), (os, "rmdir"), (os, "open"), (fcntl, "flock"),
)  # fmt: skip


class Actor(threading.Thread):
    """Does its work up to its `stop`-th step, and the rest once it is let go."""

    def __init__(self, work: Callable[[], None], stop: int) -> None:
        super().__init__(daemon=True)
        self._work, self._left = work, stop
        self._there, self._go = threading.Event(), threading.Event()
        self.held, self.error = False, None

    def run(self) -> None:
        try:
            self._work()
        except (OutputError, AdapterError) as error:
            self.error = error
        finally:
            self._there.set()

    def step(self) -> None:
        self._left -= 1
        if self._left == -1:
            self.held = True
            self._there.set()
            assert self._go.wait(30)

    def to_its_stop(self) -> None:
        self.start()
        assert self._there.wait(30)

    def to_its_end(self) -> None:
        self._go.set()
        self.join(30)
        assert not self.is_alive()


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

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in STEPS:
            patch.setattr(owner, name, counted(getattr(owner, name)))
        yield


def train(folder: Path, name: str, overwrite: bool) -> None:
    run = RunFolder(folder)
    with run.locked():
        run.settle()
        run.check(overwrite)
        run.start()
        write(folder, name, FILES[:4])
        run.commit()
        write(folder, name, FILES[4:])


def read(folder: Path) -> None:
    adapter_folder(folder)


def works(folder: Path, other: str, former: bool) -> tuple[Callable[[], None], Callable[[], None]]:
    """What the two do: the first trains, into an empty folder or over a former run; the other trains too, or reads."""
    if former:
        write(folder, "old")
    second = {"new": lambda: train(folder, "second", False), "overwrite": lambda: train(folder, "second", True)}
    return lambda: train(folder, "first", former), second.get(other, lambda: read(folder))


def check(folder: Path, other: str, first: Actor, second: Actor) -> None:
    """One run stands there, whole, of one that ended well; and one that ended well is only replaced where asked."""
    ended = {name for name, actor in (("first", first), ("second", second)) if actor.error is None}
    found = whose(folder)
    assert set(found) == set(FILES), found
    assert len(set(found.values())) == 1, found
    if other == "reader":
        assert first.error is None
        assert set(found.values()) == {"first"}
    else:
        assert set(found.values()) <= (ended or {"old"})  # the former, where each was refused for the other's sake
    assert len(ended) <= 1 or other != "new"
    assert not any((folder / name).exists() for name in (FORMER, MOVING))


@pytest.mark.parametrize("other", ["new", "overwrite", "reader"])
@pytest.mark.parametrize("former", [False, True], ids=["empty", "over a finished run"])
def test_two_at_one_folder(tmp_path: Path, other: str, former: bool) -> None:
    met = 0
    with held_at_steps():
        for i in itertools.count():  # every stop of the first, with every second one of the other
            for j in itertools.count(0, 2):
                folder = tmp_path / f"{i}-{j}"
                one, another = works(folder, other, former)
                first, second = Actor(one, i), Actor(another, j)
                first.to_its_stop()
                second.to_its_stop()
                met += first.held and second.held
                first.to_its_end()
                second.to_its_end()
                check(folder, other, first, second)
                if not second.held:
                    break
            if not first.held:
                break
    assert i > 10
    assert met > 10 or other == "reader"  # which only stops where there is something to put right
