"""Two that want one run folder, held at every pair of their steps."""

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("fcntl")
from pairs import Actor, each_pair
from runs.test_folder import FILES, whose, write

from afina.core.errors import InputError
from afina.core.process.temporary import remove_at_once
from afina.runs import folder as run_folder
from afina.runs.facts import adapter_folder
from afina.runs.folder import CHECKPOINTS, FORMER, MOVING, RunFolder, is_complete


def train(folder: Path, name: str, overwrite: bool) -> None:
    run = RunFolder(folder)
    with run.locked():
        run.settle()
        run.check(overwrite)
        run.start()
        write(folder, name, FILES[:4])
        run.commit()
        write(folder, name, FILES[4:])


def resume(folder: Path, name: str) -> None:
    run = RunFolder(folder)
    with run.locked():
        run.settle(resuming=True)
        if not (folder / "config.yaml").exists():
            raise InputError("no run")
        if is_complete(folder):
            raise InputError("complete")
        write(folder, name, FILES[:4])
        run.commit()
        write(folder, name, FILES[4:])
        remove_at_once(folder / CHECKPOINTS)


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
def test_two_at_one_folder(tmp_path: Path, other: str, former: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if other != "reader":
        monkeypatch.setattr(run_folder, "PATIENCE", 0)
    met = 0
    for folder, first, second in each_pair(tmp_path, lambda folder: works(folder, other, former)):
        met += first.held and second.held
        check(folder, other, first, second)
    assert met > 10 or other == "reader"  # which only stops where there is something to put right


@pytest.mark.parametrize("former", [False, True], ids=["alone", "which replaces another"])
@pytest.mark.parametrize("other", ["resumes too", "begins another", "reads"])
def test_two_at_a_run_that_was_cut_off(
    tmp_path: Path, other: str, former: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if other != "reads":
        monkeypatch.setattr(run_folder, "PATIENCE", 0)

    def works(folder: Path) -> tuple[Callable[[], None], Callable[[], None]]:
        write(folder, "cut", ("config.yaml", "metrics.jsonl", "checkpoints/step-1"))
        if former:
            write(folder / FORMER, "old")
        others = {
            "resumes too": lambda: resume(folder, "second"),
            "begins another": lambda: train(folder, "second", True),
            "reads": lambda: read(folder),
        }

        def first() -> None:
            resume(folder, "first")

        return first, others[other]

    for folder, first, second in each_pair(tmp_path, works):
        ended = {name for name, actor in (("first", first), ("second", second)) if actor.error is None}
        found = whose(folder)
        if other == "reads":
            ended = {"first"}
            assert first.error is None
        assert set(found) == set(FILES)
        assert len(set(found.values())) == 1
        assert set(found.values()) <= ended
        assert len(ended) == 1 or other == "begins another"  # which may replace what the first has finished
        assert not any((folder / name).exists() for name in (FORMER, MOVING))
