"""`afina runs` where folders are damaged, unfinished, or not comparable. No model is needed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rows

from afina.core.errors import InputError
from afina.core.events import Done, row
from afina.core.files import write_json, write_yaml
from afina.runs.files import read_run
from afina.runs.folder import MOVING
from afina.runs.history import diff_runs, list_runs, show_run
from afina.ui.cli import main

ANSWERS = ["red", "blue"] * 10


def make_run(run: Path, right: int = 20, end: str | None = "completed", evaluated: bool = True, kind: str = "") -> Path:
    """A run folder whose adapted model answers the first `right` of 20 rows rightly."""
    write_yaml(run / "config.yaml", {"data": {"path": "d.jsonl"}, "base": "starter", "method": "lora", "seed": right})
    if end:
        done = Done(3, end, 60.0, 100, 10.0, 1.0)
        write_rows(run / "metrics.jsonl", [row(done)])
    if evaluated:
        name = {"": "accuracy", "text": "bits_per_byte"}[kind]
        difference = {"value": 0.5, "low": 0.2, "high": 0.8, "rows": 20, "lower_is_better": False, "verdict": "better"}
        evaluation: dict[str, Any] = {
            "base": {name: 0.0},
            "adapted": {name: right / 20},
            "difference": {name: difference},
            "over_trivial": difference,
            "trivial": {},
            "kind": kind or "classification",
            "main_metric": name,
            "data": "d.jsonl",
            "rows": 20,
        }
        write_json(run / "evaluation.json", evaluation)
    if evaluated and not kind:
        rows = [
            {
                "where": f"d:{i}",
                "prompt": f"q{i}",
                "references": [a],
                "base": "",
                "adapted": a if i < right else "green",
            }
            for i, a in enumerate(ANSWERS)
        ]
        write_rows(run / "predictions.jsonl", rows)
    return run


def test_states(tmp_path: Path) -> None:
    make_run(tmp_path / "complete")
    make_run(tmp_path / "deeper" / "interrupted", end="interrupted", evaluated=False)
    make_run(tmp_path / "not evaluated", evaluated=False)
    make_run(tmp_path / "cut off", end=None, evaluated=False)
    make_run(tmp_path / "complete" / "adapter")  # inside a run
    make_run(tmp_path / ".hidden")
    found = list_runs(tmp_path)
    assert {Path(entry["run"]).name: entry["state"] for entry in found} == {
        name: name for name in ("complete", "interrupted", "not evaluated", "cut off")
    }
    assert [entry["date"] for entry in found] == sorted((entry["date"] for entry in found), reverse=True)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.yaml", "a: b"),
        ("config.yaml", "data: {path: 3}\nbase: 4\nmethod: 5"),
        ("metrics.jsonl", '{"event": "done"}\n'),
        ("metrics.jsonl", "[]\n"),
        ("evaluation.json", "{}"),
        ("evaluation.json", "null"),
        ("evaluation.json", "{"),
        ("predictions.jsonl", '{"where": 1}\n'),
    ],
)
def test_damaged_files_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, text: str) -> None:
    make_run(tmp_path / "good")
    (make_run(tmp_path / "bad") / file).write_text(text)
    with pytest.raises(InputError, match=file):
        diff_runs(tmp_path / "good", tmp_path / "bad")
    assert main(["runs", "list", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    if file != "predictions.jsonl":  # which only a comparison reads
        assert "unreadable" in out
        assert str(tmp_path / "bad" / file) in out
        assert main(["runs", "show", str(tmp_path / "bad")]) == 2
        assert file in capsys.readouterr().err


@pytest.mark.parametrize("moved", [["config.yaml"], ["evaluation.json", "metrics.jsonl"], ["predictions.jsonl"]])
@pytest.mark.parametrize(
    "opened",
    [show_run, list_runs, read_run, lambda run: diff_runs(run, run), lambda run: diff_runs(run.parent / "other", run)],
)
def test_what_a_kill_left_is_undone_whoever_opens_the_run(
    opened: Callable[[Path], Any], moved: list[str], tmp_path: Path
) -> None:
    make_run(tmp_path / "other")
    run = make_run(tmp_path / "run")
    files = sorted(path.name for path in run.iterdir())
    (run / MOVING).mkdir()
    for name in moved:
        (run / name).rename(run / MOVING / name)
    opened(run)
    assert sorted(path.name for path in run.iterdir()) == files


def test_a_folder_that_may_not_be_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "good")
    (tmp_path / "closed").mkdir()
    within = Path.iterdir

    def iterdir(self: Path) -> Any:
        if self.name == "closed":
            raise PermissionError(13, "Permission denied", str(self))
        return within(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert sorted(entry["state"] for entry in list_runs(tmp_path)) == ["complete", "unreadable"]


def test_a_run_of_before_there_were_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    assert "findings" not in json.loads((run / "evaluation.json").read_text())
    assert show_run(run)["findings"] == []
    assert main(["runs", "show", str(run)]) == 0
    assert "The adapted model is better than the base" in capsys.readouterr().out


def test_difference_in_words(tmp_path: Path) -> None:
    worse, better = make_run(tmp_path / "a", right=4), make_run(tmp_path / "b", right=20)
    found = diff_runs(worse, better)
    assert found["settings"] == {"seed": [4, 20]}
    assert found["scores"] == {"accuracy": [0.2, 1.0]}
    assert found["difference"]["value"] == pytest.approx(0.8)
    low, high = (f"{100 * found['difference'][bound]:+.1f}" for bound in ("low", "high"))
    assert found["words"] == (
        f"The second is better: +80.0 points accuracy, 95 % interval {low} to {high} points, on the same 20 rows."
    )
    assert diff_runs(better, worse)["words"].startswith("The second is worse: -80.0 points")
    assert diff_runs(better, better)["words"].startswith("The two are not clearly different")


def test_what_cannot_be_compared_says_why(tmp_path: Path) -> None:
    run, text = make_run(tmp_path / "run"), make_run(tmp_path / "text", kind="text")
    assert diff_runs(run, text)["words"].startswith("They have different main metrics: accuracy and bits per byte")
    assert diff_runs(text, text)["words"].startswith("Their predictions are missing")
    other = make_run(tmp_path / "other")
    lines = (other / "predictions.jsonl").read_text().replace('"q3"', '"q three"')
    (other / "predictions.jsonl").write_text(lines)
    assert diff_runs(run, other)["words"].startswith("They were evaluated on different rows")
    assert diff_runs(run, make_run(tmp_path / "cut", evaluated=False))["words"] == "One of the two has no evaluation."
