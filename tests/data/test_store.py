"""Prepared rows in the cache: made once, and again where their files are not what was written."""

from pathlib import Path

import pytest

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
