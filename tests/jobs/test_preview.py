"""`data preview`: the first rows, and by what it is known what would be asked and answered."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rows

from afina.core.config import build
from afina.core.errors import DataError
from afina.core.events import Notice
from afina.jobs.data.preview import PreviewDataResult, PreviewDataSettings, preview
from afina.ui.cli import main


def previewed(path: Path, rows: int = 10, **data: Any) -> PreviewDataResult:
    return preview(build(PreviewDataSettings, {"rows": rows, "data": {"path": str(path), **data}}))


def labelled(path: Path, asked: str = "zz", answered: str = "yy") -> Path:
    """Texts and one of two words, in columns whose names say nothing."""
    rows = [
        {asked: f"this is the film number {i}, and it is long", answered: ("good", "bad")[i % 2]} for i in range(80)
    ]
    return write_rows(path / "rows.jsonl", rows)


def test_what_is_given_is_taken(tmp_path: Path) -> None:
    found = previewed(labelled(tmp_path), prompt="Say: {zz}", completion="{yy}", system="Be brief.")
    assert found.mapping == {"prompt": "Say: {zz}", "completion": "{yy}", "system": "Be brief."}
    assert (found.known_by, found.reason) == ("given", "")
    renamed = previewed(labelled(tmp_path), map="prompt=zz,completion=yy")
    assert (renamed.mapping, renamed.known_by) == ({"map": "prompt=zz,completion=yy"}, "given")


def test_names_tell_it(tmp_path: Path) -> None:
    found = previewed(labelled(tmp_path, "question", "answer"), rows=3)
    assert found.known_by == "names"
    assert (found.mapping["prompt"], found.mapping["completion"]) == ("{question}", "{answer}")
    assert found.columns == ("question", "answer")
    assert [row["answer"] for row in found.rows] == ["good", "bad", "good"]
    assert found.rows[0][""].endswith("rows.jsonl:1")


def test_values_tell_it(tmp_path: Path) -> None:
    found = previewed(labelled(tmp_path))
    assert found.known_by == "values"
    assert "{zz}" in found.mapping["prompt"]
    assert found.mapping["completion"] == "{yy}"
    assert found.reason


def test_nothing_tells_it(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"zz": i, "yy": i * 7.5} for i in range(60)])
    found = previewed(path)
    assert (found.known_by, found.mapping) == ("nothing", {})
    assert "--prompt" in found.reason


def test_rejected_rows_have_their_reasons(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"question": f"{i}?", "answer": "yes"}) for i in range(5)]
    path.write_text("\n".join([*lines[:2], "{broken", *lines[2:]]) + "\n", encoding="utf-8")
    found = previewed(path)
    assert len(found.rows) == 5
    ((where, why),) = found.rejected
    assert where.endswith("rows.jsonl:3")
    assert why


def test_long_values_are_cut_and_objects_stand_as_people_read_them(tmp_path: Path) -> None:
    rows = [{"question": "x" * 2_000, "answer": "yes", "more": {"a": [1]}} for _ in range(4)]
    (shown, *_) = previewed(write_rows(tmp_path / "rows.jsonl", rows)).rows
    assert len(shown["question"]) == 500
    assert shown["more"] == "a: 1"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.txt"])
def test_an_empty_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(DataError):
        previewed(tmp_path / name)


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("question,answer\n")
    with pytest.raises(DataError):
        previewed(tmp_path / "rows.csv")


def test_the_file_is_noticed(tmp_path: Path) -> None:
    """What is found about the file itself reaches the listener."""
    path = tmp_path / "rows.csv"
    path.write_bytes("question;answer\ncafé?;sim\nmaçã?;não\n".encode("cp1252"))
    told: list[Any] = []
    settings = build(PreviewDataSettings, {"data": {"path": str(path)}})
    found = preview(settings, told.append)
    assert found.rows[0]["question"] == "café?"
    assert all(isinstance(each, Notice) for each in told)
    assert told


def test_the_command_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = labelled(tmp_path, "question", "answer")
    assert main(["data", "preview", str(path), "--rows", "2"]) == 0
    shown = capsys.readouterr().out
    assert "film number 1" in shown
    assert "film number 2" not in shown
    assert "prompt: {question}" in shown
    assert main(["data", "preview", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["known_by"] == "names"
