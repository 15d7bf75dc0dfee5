"""Runs that are killed and go on. The long form is benchmarks/kill_and_resume.py."""

import shutil
import sys
from pathlib import Path

import pytest
from forked import Forked

import afina
from afina.core.errors import InputError
from afina.core.files import read_jsonl

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import kill_and_resume


def test_killed_at_random_moments_the_adapter_is_the_same(tmp_path: Path) -> None:
    trial = kill_and_resume.Trial(tmp_path, steps=60, precision="fp32", launch=lambda *arguments: Forked(arguments))
    equal, where = trial.run(kills=2, seed=4)
    assert equal == 2, where
    rows = read_jsonl(tmp_path / "run-1" / "metrics.jsonl")
    whole = read_jsonl(tmp_path / "whole" / "metrics.jsonl")
    assert [(row["event"], row.get("step"), row.get("loss")) for row in rows] == [
        (row["event"], row.get("step"), row.get("loss")) for row in whole
    ]
    assert not (tmp_path / "run-1" / "checkpoints").exists()

    with pytest.raises(InputError, match="this run is complete"):
        afina.resume(afina.ResumeSettings(run=tmp_path / "run-1"))
    with pytest.raises(InputError, match="contains no run"):
        afina.resume(afina.ResumeSettings(run=tmp_path / "tiny"))


def test_other_data_than_the_run_began_with_is_refused(tmp_path: Path, tiny_folder: Path, colours: Path) -> None:
    from afina.core.errors import Interrupted
    from afina.core.events import Step

    data = shutil.copy(colours, tmp_path / "data.jsonl")

    def stop(event) -> None:
        import os
        import signal

        if isinstance(event, Step) and event.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    settings = afina.RunSettings(
        base=str(tiny_folder),
        out=tmp_path / "run",
        data={"path": data, "prompt": "{q}", "completion": "{a}"},
        device="cpu",
    )
    with pytest.raises(Interrupted, match=r"--resume .*run"):
        afina.train(settings, stop)
    lines = Path(data).read_text().splitlines()
    Path(data).write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(InputError, match="not what the run began with"):
        afina.resume(afina.ResumeSettings(run=tmp_path / "run"))
    Path(data).write_text("\n".join(lines) + "\n")
    assert afina.resume(afina.ResumeSettings(run=tmp_path / "run")).adapter.is_dir()
