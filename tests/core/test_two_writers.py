"""Files and folders that two processes write at the same time, held at every pair of their steps."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pairs import each_pair
from runs.test_folder import Killed, killed_before

from afina.core.errors import OutputError
from afina.core.files import write_atomic
from afina.core.process import temporary
from afina.core.process.temporary import is_empty, new_folder, sweep, temporaries
from afina.runs.folder import check_new


@pytest.mark.parametrize("other", ["writes it too", "writes another", "sweeps"])
def test_one_file(other: str, tmp_path: Path) -> None:
    def works(folder: Path) -> tuple[Callable[[], None], Callable[[], None]]:
        folder.mkdir()
        (folder / ".one.01234567.part").touch()  # of a process that was killed
        others = {
            "writes it too": lambda: write_atomic(folder / "one", "second"),
            "writes another": lambda: write_atomic(folder / "two", "second"),
            "sweeps": lambda: sweep(temporaries(folder)),
        }
        return lambda: write_atomic(folder / "one", "first"), others[other]

    for folder, first, second in each_pair(tmp_path, works, every=1):
        assert first.error is second.error is None
        found = {path.name: path.read_text() for path in folder.iterdir()}
        assert found.pop("one") in (("first", "second") if other == "writes it too" else ("first",))
        assert found == ({"two": "second"} if other == "writes another" else {})


def fill(path: Path, whose: str) -> None:
    with new_folder(path) as folder:
        for name in ("one", "two", "three"):
            write_atomic(folder / name, whose)


@pytest.mark.parametrize("place", ["absent", "empty"])
def test_one_new_folder(place: str, tmp_path: Path) -> None:
    """One of the two writes it, whole; the other is refused."""

    def works(above: Path) -> tuple[Callable[[], None], Callable[[], None]]:
        (above if place == "absent" else above / "new").mkdir(parents=True)
        return lambda: fill(above / "new", "first"), lambda: fill(above / "new", "second")

    for above, first, second in each_pair(tmp_path, works, every=5):
        ended = [name for name, actor in (("first", first), ("second", second)) if actor.error is None]
        assert {path.name: path.read_text() for path in (above / "new").iterdir()} == dict.fromkeys(
            ("one", "two", "three"), ended[0]
        )
        assert [path.name for path in above.iterdir()] == ["new"]
        assert len(ended) == 1 or not (first.held and second.held)


def test_a_new_folder_is_whole_or_empty_after_a_kill(tmp_path: Path) -> None:
    """Wherever the kill strikes: in a folder that was there, as in one that was not."""
    for there in (False, True):
        seen = set()
        for operation in itertools.count():
            place = tmp_path / f"{there}-{operation}" / "new"
            (place if there else place.parent).mkdir(parents=True)
            try:
                with killed_before(operation):
                    fill(place, "whole")
                ended = True
            except Killed:
                ended = False
            seen.add(is_whole := place.exists() and not is_empty(place))
            if is_whole:
                assert {path.name for path in place.iterdir()} == {"one", "two", "three"}
            else:
                fill(place, "again")
            assert [path.name for path in place.parent.iterdir()] == ["new"]
            if ended:
                break
        assert seen == {False, True}


def test_the_current_folder_may_be_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_new(Path())
    fill(Path(), "here")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "three", "two"]
    with pytest.raises(OutputError, match="is not empty"):
        check_new(Path())


def test_what_a_kill_left_in_a_folder_is_not_in_the_way(tmp_path: Path) -> None:
    (tmp_path / f".{tmp_path.name}.01234567.part" / "train").mkdir(parents=True)
    check_new(tmp_path)
    assert not any(tmp_path.iterdir())
    (tmp_path / ".own.01234567.part").touch()
    with pytest.raises(OutputError, match="is not empty"):
        check_new(tmp_path)


def test_a_new_folder_that_fails_leaves_what_there_was(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("absent", "empty"):
        with pytest.raises(FileNotFoundError), new_folder(tmp_path / name) as folder:
            (folder / "one" / "two").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]
    (tmp_path / "empty" / "own").touch()
    with pytest.raises(OutputError, match="cannot write"), new_folder(tmp_path / "empty") as folder:
        (folder / "one").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "own"]


def test_without_locks_what_is_a_week_old_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary, "take", lambda *_, **__: None)
    for name in (".one.00000001.part", ".one.00000002.part"):
        (tmp_path / name).touch()
    os.utime(tmp_path / ".one.00000001.part", (0, 0))
    write_atomic(tmp_path / "one", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".one.00000002.part", "one"]
