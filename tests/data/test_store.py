"""Prepared rows in the cache: made once, and again where their files are not what was written."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pairs import each_pair

from afina.core.files import write_atomic
from afina.core.process.locks import alone
from afina.core.process.temporary import remove_at_once
from afina.data import store
from afina.data.store import Rows, RowsWriter, kept_rows
from afina.data.template import Row


def write(folder: Path) -> None:
    writer = RowsWriter(folder / "train")
    for i in range(5):
        writer.add(Row([i, i + 1, 7], [-100, i + 1, 7], f"file:{i}"))
    writer.close()
    (folder / "facts.json").write_text("{}")


def prepare(cache: Path) -> bool:
    """Whether the rows had to be made; afterwards they are there."""
    made = []
    rows = kept_rows(
        cache, "key", lambda folder: made.append(write(folder)), lambda folder, more: Rows(folder / "train", more)
    )
    assert [row.input_ids[0] for row in rows] == list(range(5))
    return bool(made)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: -(path.stat().st_size // 2) - 1])


def turn(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name",
    ["train/ids", "train/labels", "train/index", "train/rows.json", "facts.json", "sums.json"],
)
@pytest.mark.parametrize("damage", [cut, turn, Path.unlink, lambda path: path.with_name("more").touch()])
def test_damaged_rows_are_made_again(name: str, damage, tmp_path: Path) -> None:
    assert prepare(tmp_path)
    assert not prepare(tmp_path)
    damage(tmp_path / "rows" / "key" / name)
    assert prepare(tmp_path)
    assert not prepare(tmp_path)


def made(cache: Path, text: str = "rows") -> str:
    return kept_rows(
        cache, "key", lambda folder: write_atomic(folder / "one", text), lambda folder, _: (folder / "one").read_text()
    )


@pytest.mark.parametrize("before", ["nothing", "sound rows", "damaged rows"])
@pytest.mark.parametrize("other", ["makes them too", "evicts them", "finds them damaged"])
def test_two_at_one_cache(before: str, other: str, tmp_path: Path) -> None:
    def works(cache: Path) -> tuple[Callable[[], object], Callable[[], object]]:
        if before != "nothing":
            made(cache)
        if before == "damaged rows":
            cut(cache / "rows" / "key" / "one")
        others = {
            "makes them too": lambda: made(cache),
            "evicts them": lambda: shutil.rmtree(cache / "rows" / "key", ignore_errors=True),
            "finds them damaged": lambda: remove_at_once(cache / "rows" / "key"),
        }
        return lambda: made(cache), others[other]

    for cache, first, second in each_pair(tmp_path, works, every=5):
        assert first.error is second.error is None
        assert first.result == "rows"
        found = {each.name for each in (cache / "rows").iterdir()}
        if other == "makes them too":
            assert second.result == "rows"
            assert found == {"key"}
            assert store._is_sound(cache / "rows" / "key")
        else:
            assert found <= {"key"}


def test_what_a_killed_process_left_goes_and_what_another_writes_stays(tmp_path: Path) -> None:
    for name in (".other.01234567.part", ".key.01234567.part"):
        (tmp_path / "rows" / name / "train").mkdir(parents=True)
    with alone(tmp_path / "rows" / ".other.01234567.part"):
        made(tmp_path)
        assert sorted(each.name for each in (tmp_path / "rows").iterdir()) == [".other.01234567.part", "key"]
    made(tmp_path)  # which finds its rows, and makes none
    shutil.rmtree(tmp_path / "rows" / "key")
    made(tmp_path)
    assert [each.name for each in (tmp_path / "rows").iterdir()] == ["key"]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "rows").touch()
    assert prepare(tmp_path)
    assert prepare(tmp_path)


def test_threads_read_the_same_rows(tmp_path: Path) -> None:
    """One makes batches ahead while another evaluates."""
    writer = RowsWriter(tmp_path / "train")
    expected = [Row([n] * (50 + n), [n] * (50 + n), f"rows.jsonl:{n + 1}") for n in range(100)]
    for row in expected:
        writer.add(row)
    writer.close()
    rows = Rows(tmp_path / "train")
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda n: rows[n].input_ids == expected[n].input_ids, 40 * list(range(100))))
    assert all(found)
