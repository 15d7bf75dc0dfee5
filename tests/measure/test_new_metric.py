"""A metric registered from outside the package: computed, reported, and compared in its own direction."""

import json
from pathlib import Path

import pytest

import afina
from afina.core.errors import SettingsError
from afina.measure.metric import FREE_TEXT, Group, Metric, Predictions, RowStats, mean
from afina.measure.metrics import METRICS
from afina.runs.history import show_run
from afina.ui.cli import main


def _vowels(predictions: Predictions) -> RowStats:
    return mean([float(sum(letter in "aeiou" for letter in answer)) for answer in predictions.answers])


def _shown(value: float, signed: bool) -> str:
    return f"{value:{'+' if signed else ''}.2f} vowels"


VOWELS = Metric("vowels", "vowels per answer", Group.VARIETY, _vowels, _shown, lower_is_better=True, kinds=FREE_TEXT)


def test_a_metric_from_elsewhere(
    tiny_folder: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "base": str(tiny_folder), "out": tmp_path / "run", "precision": "fp32", "device": "cpu",
        "data": {"path": colours, "prompt": "{q}", "completion": "{a}", "held_out": 0.3, "kind": "generation"},
        "train": {"epochs": 4},
    }  # fmt: skip
    with METRICS.added(VOWELS):
        result = afina.train(afina.RunSettings(**settings))
        evaluation = json.loads((result.folder / "evaluation.json").read_text())
        base, adapted, difference = (evaluation[name]["vowels"] for name in ("base", "adapted", "difference"))
        assert difference["value"] == pytest.approx(adapted - base)
        assert difference["lower_is_better"]
        rose = difference["low"] > 0  # right answers have a vowel and more, the base's hardly any
        assert difference["verdict"] == (
            "worse" if rose else "better" if difference["high"] < 0 else "not distinguishable"
        )
        assert len(evaluation["interval"]["adapted"]["vowels"]) == 2

        page = result.report.read_text()
        assert "vowels per answer" in page
        assert f"{adapted:.2f} vowels" in page
        row = next(row for row in show_run(result.folder)["table"] if row["label"] == "vowels per answer")
        assert row["tone"] == {"worse": "bad", "better": "good"}.get(difference["verdict"], "")
        capsys.readouterr()
        assert main(["runs", "show", str(result.folder)]) == 0
        assert f"{adapted:.2f} vowels" in capsys.readouterr().out
        with pytest.raises(SettingsError, match="there is already a metric 'vowels'"):
            METRICS.add(VOWELS)
    # Where it is not registered, the run is read all the same, and the score is shown under its name.
    assert any(row["label"] == "vowels" for row in show_run(result.folder)["table"])
