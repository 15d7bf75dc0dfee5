"""Runs listed, shown and compared; trackers that hear the run's numbers."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

import afina
from afina.core.config import changed
from afina.core.errors import InputError, SettingsError
from afina.core.events import Notice
from afina.runs.history import diff_runs, list_runs, show_run
from afina.ui.cli import main


def settings(tiny_folder: Path, colours: Path, out: Path, **more) -> afina.RunSettings:
    values = {
        "base": str(tiny_folder), "out": out, "precision": "fp32", "device": "cpu",
        "data": {"path": colours, "prompt": "{q}", "completion": "{a}", "held_out": 0.3},
        "train": {"epochs": 1, "learning_rate": 0.01},
    }  # fmt: skip
    return afina.RunSettings(**(values | more))


@pytest.fixture
def two(tiny_folder: Path, colours: Path, tmp_path: Path) -> Path:
    afina.train(settings(tiny_folder, colours, tmp_path / "runs" / "one"))
    afina.train(settings(tiny_folder, colours, tmp_path / "runs" / "two", train={"epochs": 15, "learning_rate": 0.01}))
    return tmp_path / "runs"


def test_runs_are_listed_shown_and_compared(two: Path, capsys: pytest.CaptureFixture) -> None:
    (two / "broken").mkdir()
    (two / "broken" / "config.yaml").write_text("[")
    (two / "cut").mkdir()
    (two / "cut" / "config.yaml").write_text((two / "one" / "config.yaml").read_text())
    found = {Path(entry["run"]).name: entry for entry in list_runs(two)}
    assert set(found) == {"one", "two", "broken", "cut"}
    assert found["two"]["state"] == "complete"
    assert found["two"]["verdict"] == "better"
    assert 0 < found["two"]["difference"]["low"] <= found["two"]["difference"]["high"] <= 1
    assert "not valid YAML" in found["broken"]["problem"]
    assert found["cut"]["state"] == "cut off"
    assert found["broken"]["state"] == "unreadable"

    shown = show_run(two / "two")
    assert shown["settings"]["train.epochs"] == 15
    assert "data.prompt" in shown["settings"]
    assert "train.warmup" not in shown["settings"]  # a default
    assert shown["verdict"].startswith("The adapted model is better")

    diff = diff_runs(two / "one", two / "two")
    assert diff["settings"]["train.epochs"] == [1, 15]
    assert "lora.rank" not in diff["settings"]
    assert diff["difference"]["rows"] == 18
    assert "on the same 18 rows" in diff["words"]
    rows = (two / "two" / "predictions.jsonl").read_text().splitlines()
    (two / "two" / "predictions.jsonl").write_text("\n".join(rows[1:]) + "\n")
    assert "different rows" in diff_runs(two / "one", two / "two")["words"]

    for arguments in (["list", str(two)], ["show", str(two / "two")], ["diff", str(two / "one"), str(two / "two")]):
        assert main(["runs", *arguments]) == 0
        plain = capsys.readouterr().out
        assert "two" in plain or "epochs" in plain
        assert arguments[0] == "diff" or "points" in plain  # the difference, with its interval
        assert main(["runs", *arguments, "--json"]) == 0
        json.loads(capsys.readouterr().out)


def test_runs_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(InputError, match="no such folder"):
        list_runs(tmp_path / "absent")
    with pytest.raises(InputError, match="contains no run"):
        show_run(tmp_path)
    assert list_runs(tmp_path) == []
    assert main(["runs", "diff", str(tmp_path)]) == 2
    assert "takes 2 RUN, 1 given" in capsys.readouterr().err


def test_trackers_hear_steps_evaluations_and_the_result(
    tiny_folder: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[dict, int]] = []
    fake = ModuleType("wandb")

    class Run:
        def log(self, values: dict, step: int) -> None:
            heard.append((values, step))

        def finish(self) -> None:
            heard.append(({"finished": True}, -1))

    fake.init = lambda **_: Run()  # type: ignore[attr-defined]
    broken = ModuleType("trackio")
    broken.init = broken.finish = lambda **_: None  # type: ignore[attr-defined]

    def fail(_: dict, step: int) -> None:
        raise RuntimeError("its server is away")

    broken.log = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setitem(sys.modules, "trackio", broken)
    news = []
    afina.train(settings(tiny_folder, colours, tmp_path / "run", track="wandb,trackio"), news.append)
    steps = [step for values, step in heard if "train/loss" in values]
    assert steps == list(range(1, len(steps) + 1))
    assert any("held_out/loss" in values for values, _ in heard)
    assert any("adapted/accuracy" in values for values, _ in heard)
    assert heard[-1][0] == {"finished": True}
    warned = [event.text for event in news if isinstance(event, Notice) and event.warning and "trackio" in event.text]
    assert warned == ["--track trackio failed, and nothing more is logged to it: its server is away"]


def test_tensorboard_writes_what_it_reads(tiny_folder: Path, colours: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    afina.train(settings(tiny_folder, colours, tmp_path / "run", track="tensorboard"))
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    assert {"train/loss", "held_out/loss", "adapted/accuracy"} <= set(found.Tags()["scalars"])


def test_trackers_that_are_not_there(tiny_folder: Path, colours: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    for name, said in (("mlflow", r"pip install 'afina\[mlflow\]'"), ("tensorbord", "Did you mean 'tensorboard'")):
        with pytest.raises(SettingsError, match=said):
            afina.train(changed(settings(tiny_folder, colours, tmp_path / "run"), {"track": name}))
        assert not (tmp_path / "run").exists()
