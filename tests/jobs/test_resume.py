"""Runs that are killed and go on. The long form is benchmarks/kill_and_resume.py."""

import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest
from conftest import evaluate, write_rows

import afina
from afina.core.errors import InputError, Interrupted
from afina.core.events import Listener, Step, ignore
from afina.runs.history import diff_runs, list_runs

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from kill_and_resume import Trial, run_outcome


def stop_at(step: int) -> Listener:
    def stop(event) -> None:
        if isinstance(event, Step) and event.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return stop


def test_killed_at_random_moments_all_ends_as_if_never_killed(tmp_path: Path) -> None:
    """A new run, one over a finished run, a resumed one, and data prepared in two formats."""
    trial = Trial(tmp_path.resolve(), random.Random(4), precisions=("fp32",))
    assert trial.run(5) == []


@pytest.mark.parametrize("way", ["two files", "a folder", "a pattern", "a link"])
def test_a_run_that_is_resumed_from_elsewhere_has_a_twin(
    way: str, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However its data are named, and wherever it is resumed, all files are those of a run that was not interrupted,
    but for times, and `runs diff` sees them as equal."""
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"q": f"{'ab'[i % 2]}{i:02d}", "a": ("red", "blue")[i % 2] if i % 20 else ""} for i in range(40)]
    write_rows(data / "one.jsonl", rows[:20])
    write_rows(data / "two.jsonl", rows[20:])
    (data / "link.jsonl").symlink_to(data / "one.jsonl")
    named: dict[str, dict[str, str]] = {
        "two files": {"path": "data/../data/one.jsonl", "eval_path": "data/two.jsonl"},
        "a folder": {"path": "data"},
        "a pattern": {"path": "data/t*.jsonl"},
        "a link": {"path": "data/link.jsonl"},
    }
    if way == "a folder":
        (data / "link.jsonl").unlink()

    def train(out: str, stops: bool) -> None:
        settings = afina.RunSettings(
            base=str(tiny_folder),
            out=out,
            data={**named[way], "prompt": "{q}", "completion": "{a}"},
            device="cpu",
            precision="fp32",
        )
        afina.train(settings, stop_at(3) if stops else ignore)

    monkeypatch.chdir(tmp_path)
    train("whole", stops=False)
    with pytest.raises(Interrupted):
        train("cut", stops=True)
    monkeypatch.chdir(data)
    afina.resume(afina.ResumeSettings(run="../cut"))
    monkeypatch.chdir(tmp_path)
    whole, cut = run_outcome(Path("whole")), run_outcome(Path("cut"))
    assert {name for name in {*whole, *cut} if whole.get(name) != cut.get(name)} <= {"metrics.jsonl"}
    assert len(whole) > 8
    found = diff_runs(Path("whole"), Path("cut"))
    assert found["settings"] == {}
    assert found["difference"]["value"] == 0
    assert "on the same" in found["words"]
    for name in ("predictions.jsonl", "rejected.jsonl", "evaluation.json"):
        assert str(tmp_path) not in str(cut[name])
    with pytest.raises(InputError, match="this run is complete"):
        afina.resume(afina.ResumeSettings(run="cut"))
    with pytest.raises(InputError, match="contains no run"):
        afina.resume(afina.ResumeSettings(run="data"))


def test_a_run_that_was_evaluated_before_its_end_can_be_resumed(
    tmp_path: Path, tiny_folder: Path, colours: Path
) -> None:
    settings = afina.RunSettings(
        base=str(tiny_folder), out=tmp_path / "run", data={"path": colours, "prompt": "{q}", "completion": "{a}"}
    )
    with pytest.raises(Interrupted):
        afina.train(settings, stop_at(3))
    evaluate(tmp_path / "run", colours, limit=4)
    (entry,) = list_runs(tmp_path / "run")
    assert entry["state"] == "interrupted"
    assert "--resume" in entry["resume"]
    afina.resume(afina.ResumeSettings(run=tmp_path / "run"))
    (entry,) = list_runs(tmp_path / "run")
    assert entry["state"] == "complete"
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_other_data_than_the_run_began_with_is_refused(tmp_path: Path, tiny_folder: Path, colours: Path) -> None:
    data = shutil.copy(colours, tmp_path / "data.jsonl")

    settings = afina.RunSettings(
        base=str(tiny_folder),
        out=tmp_path / "run",
        data={"path": data, "prompt": "{q}", "completion": "{a}"},
        device="cpu",
    )
    with pytest.raises(Interrupted, match=r"--resume .*run"):
        afina.train(settings, stop_at(3))
    lines = Path(data).read_text().splitlines()
    Path(data).write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(InputError, match="not what the run began with"):
        afina.resume(afina.ResumeSettings(run=tmp_path / "run"))
    Path(data).write_text("\n".join(lines) + "\n")
    metrics = tmp_path / "run" / "metrics.jsonl"
    shutil.move(metrics, tmp_path / "elsewhere")
    metrics.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"metrics.jsonl is a link to .*elsewhere"):
        afina.resume(afina.ResumeSettings(run=tmp_path / "run"))
    shutil.move(tmp_path / "elsewhere", metrics)
    os.mkfifo(tmp_path / "run" / "checkpoints" / "step-00000099.safetensors")
    assert afina.resume(afina.ResumeSettings(run=tmp_path / "run")).adapter.is_dir()
