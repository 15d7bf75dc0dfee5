"""What the commands print, and where."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_rows
from forked import Forked

import afina
from afina.core.config import fields, read_yaml
from afina.ui.cli import main

QUICK = ["--precision", "fp32", "--device", "cpu", "--train.learning_rate", "0.03"]


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    rows = [{"q": f"{'a' if i % 2 else 'b'}{i:02d}", "a": "red" if i % 2 else "blue"} for i in range(40)]
    write_rows(folder / "d.jsonl", rows)
    flags = ["--prompt", "{q}", "--completion", "{a}", "--epochs", "2", "--lora.rank", "3", "--limit", "30", *QUICK]
    assert (
        main(["train", str(folder / "d.jsonl"), "--base", str(tiny_folder), "--out", str(folder / "run"), *flags]) == 0
    )
    return folder


def test_help_is_quick_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "afina", "--help"], capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 5  # seconds are measured in benchmarks/; this only tells torch was not imported
    assert "train" in done.stdout
    modules = "import sys, afina.ui.cli; print('torch' in sys.modules, 'pydantic' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", modules], capture_output=True, text=True, check=True).stdout
        == "False False\n"
    )
    with pytest.raises(SystemExit) as left:
        main(["train", "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    for field in fields(afina.RunSettings):
        if field.path != "data.path":
            assert field.flags[0] in text
            assert field.help, f"{field.path} has no help"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"afina {afina.__version__}\n"


def test_flags_reach_the_settings(run: Path) -> None:
    config = read_yaml(run / "run" / "config.yaml")
    assert config["lora"]["rank"] == 3
    assert config["data"]["limit"] == 30
    assert config["train"]["epochs"] == 2
    assert config["train"]["learning_rate"] == 0.03
    assert config["precision"] == "fp32"


def test_flags_override_the_file(run: Path, tiny_folder: Path, tmp_path: Path) -> None:
    arguments = ["train", "--config", str(run / "run" / "config.yaml"), "--out", str(tmp_path / "x"), "--epochs", "1"]
    assert main([*arguments, "--lora.target_modules", "q_proj,v_proj", "--lora.rank_pattern", "{q_proj: 2}"]) == 0
    config = read_yaml(tmp_path / "x" / "config.yaml")
    assert (config["train"]["epochs"], config["lora"]["rank"]) == (1, 3)
    assert config["lora"]["target_modules"] == ["q_proj", "v_proj"]
    assert config["lora"]["rank_pattern"] == {"q_proj": 2}


def test_eval_json_is_one_object(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(run / "run", tmp_path / "copy")
    assert main(["eval", str(folder), str(run / "d.jsonl"), "--limit", "9", "--json", "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert {"base", "adapted"} <= set(found)
    assert found["rows"] == 9
    assert {"accuracy", "macro_f1", "stop_rate", "loss"} <= set(found["adapted"])
    assert "answers of the base model" in captured.err
    assert found == json.loads((folder / "evaluation.json").read_text())


def test_eval_table(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(run / "run", tmp_path / "copy")
    assert main(["eval", str(folder), str(run / "d.jsonl"), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for word in ("accuracy", "95 % interval", "The adapted model is", "majority label", "report: "):
        assert word in out


def test_generate(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(run / "run"), "a01", "--device", "cpu"]) == 0
    answer = capsys.readouterr().out
    assert main(["generate", str(run / "run"), "a01", "--base-too", "--device", "cpu"]) == 0
    both = capsys.readouterr().out
    assert both.startswith("base:    ")
    assert f"adapted: {answer}" in both
    out = tmp_path / "answers.jsonl"
    assert (
        main(["generate", str(run / "run"), "--data", str(run / "d.jsonl"), "--out", str(out), "--device", "cpu"]) == 0
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 40
    assert set(rows[0]) == {"where", "prompt", "answer", "stopped"}
    assert capsys.readouterr().out == ""


def test_models(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) == 0
    assert "smollm2-135m-instruct" in capsys.readouterr().out
    assert main(["models", "show", "starter", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["licence"] == "apache-2.0"
    assert main(["models", "show", str(tiny_folder)]) == 0
    assert "llama" in capsys.readouterr().out


def test_ctrl_c_is_130_and_keeps_the_adapter(run: Path, tiny_folder: Path, tmp_path: Path) -> None:
    command = ["train", str(run / "d.jsonl"), "--prompt", "{q}", "--completion", "{a}", "--base", str(tiny_folder)]
    command += ["--out", str(tmp_path / "x"), "--epochs", "1000", *QUICK, "--train.early_stopping", "0"]
    with (tmp_path / "errors").open("w+") as errors:
        process = Forked(command, stderr=errors)
        while not (tmp_path / "x" / "metrics.jsonl").exists() or "step" not in (tmp_path / "errors").read_text():
            assert process.poll() is None, (tmp_path / "errors").read_text()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        process.wait()
    told = (tmp_path / "errors").read_text()
    assert process.returncode == 130, told
    assert "afina: stopped after step" in told
    assert "Traceback" not in told
    assert main(["generate", str(tmp_path / "x"), "a01", "--device", "cpu"]) == 0


def test_eval_with_a_metric_of_ones_own(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(run / "run", tmp_path / "copy")
    (tmp_path / "mine.py").write_text(
        "def letters(answer, references):\n    return float(len(answer))\ndef accuracy(a, r):\n    return 1"
    )
    asked = ["eval", str(folder), str(run / "d.jsonl"), "--device", "cpu"]
    assert main([*asked, "--metric", f"{tmp_path / 'mine.py'}:letters", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    for name in ("base", "adapted"):
        assert found[name]["letters"] == pytest.approx(sum(len(row[name]) for row in rows) / len(rows))
    assert found["difference"]["letters"]["rows"] == len(rows)
    assert main([*asked, "--metric", f"{tmp_path / 'mine.py'}:accuracy"]) == 2
    assert "there is already a metric 'accuracy'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "no DATA was given"),
        (["d.jsonl", "--tasks", "x"], "does not read DATA"),
        (["d.jsonl", "--judge", "http://127.0.0.1:1"], "belong together"),
        (["d.jsonl", "--chat"], "afina eval does not read --chat"),
        (["--tasks", "x", "--references", "r"], "--tasks does not read --references"),
        (["d.jsonl", "--judge", "ftp://x", "--judge-model", "m"], "http"),
    ],
)
def test_eval_flags_that_do_not_fit(run: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "run" / "evaluation.json").read_text()
    assert main(["eval", str(run / "run"), *[str(run / f) if f == "d.jsonl" else f for f in flags]]) == 2
    assert said in capsys.readouterr().err
    assert (run / "run" / "evaluation.json").read_text() == before


def test_compare_and_tune_say_what_they_need(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(run / "d.jsonl")
    for flags, said in (
        (["compare"], "no DATA was given"),
        (["compare", data, "--minutes", "1", "--epochs", "2"], "exclude each other"),
        (["compare", data, "--minutes", "0"], "should be greater than 0"),
        (["tune", data], "--minutes M or --trials N"),
        (["tune", data, "--minutes", "nan"], "should be a finite number"),
    ):
        assert main(flags) == 2
        assert said in capsys.readouterr().err


def test_a_run_that_shares_nothing_is_verified(tiny_folder: Path, tmp_path: Path) -> None:
    """Where rows share a prompt, there are fewer labelled positions, and they stand in another order."""
    rows = [{"q": f"p{i // 4}", "a": f"{'dcba'[i % 4]} red"} for i in range(24)]
    write_rows(tmp_path / "d.jsonl", rows)
    flags = ["--base", str(tiny_folder), "--prompt", "{q}", "--completion", "{a}", "--epochs", "1", *QUICK]
    out = ["--out", str(tmp_path / "x"), "--train.share", "false"]
    assert main(["train", str(tmp_path / "d.jsonl"), *flags, *out]) == 0


@pytest.mark.parametrize(
    "flags",
    [
        ["--method", "head", "--train.optimizer", "muon"],
        ["--method", "full", "--train.lora_plus_ratio", "16"],
        ["--lora.init", "pissa", "--train.optimizer", "lora_pro"],
    ],
)
def test_what_needs_factors_is_refused_where_none_are_trained(
    run: Path, tiny_folder: Path, tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--base", str(tiny_folder), "--prompt", "{q}", "--completion", "{a}", "--out", str(tmp_path / "x"), *QUICK]
    assert main(["train", str(run / "d.jsonl"), *given, *flags]) == 2
    assert f"{flags[2]} {flags[3]} " in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("words", [["--train.group_prompts", "yes"], ["--train.group_prompts=false"]])
def test_a_switch_takes_no_value(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *words, "rows.jsonl"]) == 2
    assert "give --train.group_prompts alone" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--base-too", "yes"], ["--", "--lora.rslora=yes"]])
def test_a_text_is_no_value_of_a_switch(words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["generate", str(tmp_path / "absent"), *words]) == 2
    assert "no such folder" in capsys.readouterr().err
