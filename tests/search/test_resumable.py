"""Folders of searches: found again by `afina runs list`, with the command that goes on with them."""

import subprocess
from pathlib import Path

import pytest
from conftest import write_rows

from afina.core.config import build, command
from afina.core.errors import InputError, Interrupted, OutputError
from afina.core.files import write_yaml
from afina.jobs import JOBS
from afina.jobs.choose import ChooseSettings
from afina.jobs.compare import CompareSettings
from afina.jobs.tune import TuneSettings
from afina.runs.history import list_runs, show_run
from afina.search.resumable import resumable_folder
from afina.ui.cli import main
from afina.ui.flags import Command


def work(asked: TuneSettings, out: Path, then: type[BaseException] | None = None) -> None:
    """A search that finishes a trial, and ends as `then` says."""
    with resumable_folder(out, "tune", asked, asked.run, {"workers": 1}):
        (out / "probe.json").write_text("{}")
        if then:
            raise then


def asked(folder: Path, **more) -> TuneSettings:
    run = {"data": {"path": folder / "my rows.csv", "prompt": "{q} 'x'"}, "base": "some/base", "lora": {}}
    return build(TuneSettings, {"minutes": 30, "run": run} | more)


def make_run(folder: Path) -> None:
    write_yaml(folder / "config.yaml", {"data": {"path": "d.jsonl"}, "base": "starter", "method": "lora"})


def test_a_search_that_was_cut_off_is_listed_with_the_command_that_resumes_it(tmp_path: Path, capsys) -> None:
    with pytest.raises(Interrupted):
        work(asked(tmp_path), tmp_path / "one", KeyboardInterrupt)
    make_run(tmp_path / "one" / "defaults")
    make_run(tmp_path / "alone")
    found = {Path(entry["run"]).name: entry for entry in list_runs(tmp_path)}
    assert set(found) == {"one", "defaults", "alone"}
    one = found["one"]
    assert (one["state"], one["method"], one["base"]) == ("cut off", "tune", "some/base")
    assert "resume" not in found["defaults"]  # the search goes on with it
    assert found["alone"]["resume"] == f"afina train --resume {tmp_path / 'alone'}"
    assert main(["runs", "list", str(tmp_path)]) == 0
    assert f"to go on: {one['resume']}" in capsys.readouterr().out
    with pytest.raises(InputError, match="holds a search, not a run"):
        show_run(tmp_path / "one")


def test_searches_that_end_that_run_and_that_fail(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    work(asked(tmp_path), tmp_path / "all" / "done")
    with pytest.raises(RuntimeError):
        work(asked(tmp_path), tmp_path / "all" / "failed", RuntimeError)
    write_yaml(tmp_path / "all" / "damaged" / "search.yaml", {"search": "tune"})
    with resumable_folder(tmp_path / "all" / "now", "tune", asked(tmp_path), asked(tmp_path).run, {}):
        states = {Path(entry["run"]).name: entry["state"] for entry in list_runs(tmp_path / "all")}
    assert states == {"done": "complete", "failed": "cut off", "damaged": "unreadable", "now": "running"}
    make_run(tmp_path / "all" / "done" / "best")
    best = next(entry for entry in list_runs(tmp_path / "all") if entry["run"].endswith("best"))
    assert "--resume" in best["resume"]  # nobody else goes on with it


def test_the_same_search_goes_on_and_another_does_not(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        work(asked(tmp_path), tmp_path / "out", KeyboardInterrupt)
    work(asked(tmp_path, minutes=50), tmp_path / "out")  # a longer one
    with pytest.raises(OutputError, match=r"other settings \(seed\)"):
        work(asked(tmp_path, run=asked(tmp_path).run.model_dump(exclude_unset=True) | {"seed": 1}), tmp_path / "out")
    other = resumable_folder(tmp_path / "out", "compare", asked(tmp_path), asked(tmp_path).run, {"workers": 1})
    with pytest.raises(OutputError, match="holds what `afina tune` made"), other:
        pass
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "poem.txt").write_text("…")
    with pytest.raises(OutputError, match="did not make"):
        work(asked(tmp_path), tmp_path / "mine")
    assert [each.name for each in (tmp_path / "mine").iterdir()] == ["poem.txt"]


@pytest.mark.parametrize(
    ("job", "settings", "values"),
    [
        ("tune", TuneSettings, {"minutes": 2.5, "workers": 2, "ray": True, "run": {"track": ("wandb", "mlflow")}}),
        ("tune", TuneSettings, {"trials": 3, "run": {"train": {"checkpoint_activations": True, "epochs": 2}}}),
        ("compare", CompareSettings, {"methods": ("base", "lora"), "seeds": 2, "run": {"allow_swap": False}}),
        (
            "compare",
            CompareSettings,
            {"run": {"lora": {"target_modules": ("q_proj", "v_proj"), "rank_pattern": {"a": 2}}}},
        ),
        ("choose", ChooseSettings, {"licence": "commercial", "download": True, "run": {"data": {"limit": 9}}}),
    ],
)
def test_a_command_gives_the_settings_that_it_was_made_of(job: str, settings, values: dict, tmp_path: Path) -> None:
    data = {"path": write_rows(tmp_path / "my rows.jsonl", [{}]), "prompt": "a 'b' \"{c}\"\n$HOME"}
    run = values.get("run", {})
    made = build(settings, values | {"run": run | {"data": data | run.get("data", {})}})
    line = command(job, made)
    assert "\n" not in line  # it can be pasted
    printed = subprocess.run(["bash", "-c", rf"printf '%s\0' {line}"], capture_output=True, text=True, check=True)
    words = printed.stdout.split("\0")[:-1]
    assert words[:2] == ["afina", job]
    import argparse

    parser = argparse.ArgumentParser()
    read = Command(job, [JOBS[job].load()], [job])
    read.declare(parser, words[2:])
    _, found = read.read(parser.parse_args(words[2:]))
    assert found == made
