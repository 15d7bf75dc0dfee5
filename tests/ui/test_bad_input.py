"""Bad input: one clear message on standard error, exit code 2, no traceback, and nothing written or lost."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import pytest
from conftest import save_tiny, write_rows

from afina.ui.cli import main

ROWS = [{"q": f"{i} bottles", "a": "few" if i < 20 else "many"} for i in range(40)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with good data, a trained run, and all kinds of bad things."""
    folder = tmp_path_factory.mktemp("place")
    write_rows(folder / "good.jsonl", ROWS)
    (folder / "empty.jsonl").write_text("")
    (folder / "binary.jsonl").write_bytes(bytes(range(256)))
    (folder / "broken.jsonl").write_text('{"q": "x", "a"\n' * 3)
    (folder / "header.csv").write_text("q,a\n")
    (folder / "latin.csv").write_bytes("q,a\ncoração,sim\n".encode("latin-1"))
    write_rows(folder / "same.jsonl", [{"q": "x", "a": "y"}] * 9)
    write_rows(folder / "noanswer.jsonl", [{"q": "x", "a": ""}] * 9)
    write_rows(folder / "long.jsonl", [*ROWS, {"q": "long " * 500, "a": "many"}])
    (folder / "typo.yaml").write_text("lora:\n  rnk: 8\n")
    (folder / "both.yaml").write_text("train:\n  batch_size: 4\n  tokens_per_batch: 200\n")
    (folder / "list.yaml").write_text("- 1\n")
    (folder / "file").write_text("")
    os.mkfifo(folder / "fifo.csv")
    for name in ("zero.gguf", "zero.py"):
        (folder / name).symlink_to("/dev/zero")
    (folder / "other").mkdir()
    (folder / "other" / "thesis.tex").write_text("precious")
    (folder / "notrun").mkdir()
    save_tiny(folder / "other-base", seed=5)
    shutil.copytree(tiny_folder, folder / "no-weights")
    (folder / "no-weights" / "model.safetensors").unlink()
    assert (
        main(
            [
                "train",
                str(folder / "good.jsonl"),
                *TEMPLATES,
                "--base",
                str(tiny_folder),
                "--out",
                str(folder / "run"),
                *QUICK,
            ]
        )
        == 0
    )
    shutil.copytree(folder / "run", folder / "damaged")
    weights = folder / "damaged" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    return folder


TEMPLATES = ["--prompt", "{q}", "--completion", "{a}"]
QUICK = ["--precision", "fp32", "--device", "cpu", "--epochs", "1", "--train.learning_rate", "0.01"]


def train(data: str, *more: str, base: str = "BASE", out: str = "OUT") -> list[str]:
    return ["train", data, *TEMPLATES, "--base", base, "--out", out, *QUICK, *more]


CASES: dict[str, tuple[list[str], str]] = {
    "missing file": (train("nowhere.jsonl"), "nowhere.jsonl: no such file"),
    "folder as data": (train("other"), "is a folder"),
    "unknown type": (train("typo.yaml"), "type '.yaml' is not read"),
    "empty file": (train("empty.jsonl"), "is empty"),
    "header only": (train("header.csv"), "is empty"),
    "binary file": (train("binary.jsonl"), "binary file"),
    "bad JSON": (train("broken.jsonl"), "not JSON"),
    "wrong column": (train("good.jsonl", "--prompt", "{question}"), "no column 'question', which --prompt names"),
    "brace without partner": (train("good.jsonl", "--prompt", "{q"), "the brace at position 1 has no partner"),
    "template without column": (train("good.jsonl", "--completion", "yes"), "names no column"),
    "no usable row": (train("noanswer.jsonl"), "9 rows: the completion is empty"),
    "one prompt only": (train("same.jsonl"), "only 1 distinct prompt"),
    "rows too long": (train("long.jsonl"), "1 row is longer than 512 tokens, of 41"),
    "no data": (["train"], "no DATA was given"),
    "unknown flag": (train("good.jsonl", "--lora.rnak", "4"), "Did you mean '--lora.rank'"),
    "switch with a value": (
        train("good.jsonl", "--train.group_prompts", "true"),
        "it is a switch, which takes no value",
    ),
    "switch with an empty value": (
        train("good.jsonl", "--train.group_prompts="),
        "--train.group_prompts=: it is a switch",
    ),
    "flag without value": (["train", "good.jsonl", "--out"], "expected one argument"),
    "unknown setting in a file": (
        train("good.jsonl", "--config", "typo.yaml"),
        "unknown setting 'lora.rnk'. Did you mean 'lora.rank'",
    ),
    "configuration that is a list": (train("good.jsonl", "--config", "list.yaml"), "is a list"),
    "configuration that is missing": (
        train("good.jsonl", "--config", "none.yaml"),
        "cannot read the configuration none.yaml",
    ),
    "value of the wrong type": (train("good.jsonl", "--lora.rank", "big"), "--lora.rank is 'big'"),
    "value out of bounds": (train("good.jsonl", "--epochs", "-1"), "--epochs is -1"),
    "unknown choice": (train("good.jsonl", "--precision", "fp8"), "--precision is 'fp8'"),
    "base that does not exist": (train("good.jsonl", base="startr"), "Did you mean 'starter'"),
    "base folder without model": (train("good.jsonl", base="notrun"), "no config.json"),
    "base without weights": (train("good.jsonl", base="no-weights"), "weights cannot be loaded"),
    "target that matches nothing": (
        train("good.jsonl", "--lora.target_modules", "q_prj"),
        "'q_prj' matches no layer. Did you mean 'q_proj'",
    ),
    "adapter of another base": (train("good.jsonl", "--adapter", "run", base="other-base"), "was trained on the base"),
    "adapter that is none": (train("good.jsonl", "--adapter", "notrun"), "contains no adapter"),
    "existing run": (train("good.jsonl", out="run"), "--overwrite"),
    "folder of other things": (train("good.jsonl", "--overwrite", out="other"), "not from a run"),
    "place below a file": (train("good.jsonl", out="file/run"), "is a file, not a folder"),
    "run that does not exist": (["eval", "norun", "good.jsonl"], "run norun: no such folder"),
    "run that is none": (["generate", "notrun", "Hi"], "contains no adapter"),
    "damaged adapter": (["generate", "damaged", "Hi", "--device", "cpu"], "damaged"),
    "evaluation of a missing file": (["eval", "run", "nowhere.jsonl"], "no such file"),
    "evaluation without answers": (["eval", "run", "good.jsonl", "--references", "refs"], "no column 'refs'"),
    "limit of nothing": (["eval", "run", "good.jsonl", "--limit", "0"], "--limit is 0"),
    "prompt and file": (["generate", "run", "Hi", "--data", "good.jsonl"], "either PROMPT or --data"),
    "answers into a folder": (["generate", "run", "Hi", "--out", "other"], "is a folder"),
    "answers to a full disk": (["generate", "run", "Hi", "--out", "/dev/full"], "no space left"),
    "answers over the questions": (
        ["generate", "run", "--data", "good.jsonl", "--out", "good.jsonl"],
        "is the file of --data itself",
    ),
    "answers over another file": (["generate", "run", "Hi", "--out", "latin.csv"], "exists already"),
    "answers nowhere": (["generate", "run", "Hi", "--out", "/proc/x/y"], "cannot write /proc/x/y"),
    "empty prompt": (["generate", "run", " "], "PROMPT is empty"),
    "prompt that is no Unicode": (["generate", "run", "\udcff", "--device", "cpu"], "not valid Unicode"),
    "empty reference column": (
        ["eval", "run", "good.jsonl", "--references", "", "--device", "cpu"],
        "--references is ''",
    ),
    "endless training": (train("good.jsonl", "--epochs", "inf"), "--epochs is"),
    "seed too large": (train("good.jsonl", "--seed", "9" * 30), "--seed is"),
    "pattern that is none": (train("good.jsonl", "--lora.target_modules", "re:("), "is not a regular expression"),
    "nearly a flag": (train("good.jsonl", "--epoch", "3"), "Did you mean '--epochs', '--train.epochs', '--export'?"),
    "two test splits": (train("good.jsonl", "--test", "0.1", "--test-data", "good.jsonl"), "give one of them"),
    "two held-out splits": (
        train("good.jsonl", "--data.held_out", "0.3", "--eval-data", "good.jsonl"),
        "--eval-data is 'good.jsonl': held_out is given too, which it replaces: give one of them",
    ),
    "epochs beside rows": (
        train("good.jsonl", "--epochs", "2", "--train.rows", "80"),
        "--train.rows is 80: epochs is given too, which it replaces: give one of them",
    ),
    "rows beside tokens": (
        train("good.jsonl", "--train.batch_size", "8", "--train.tokens_per_batch", "512"),
        "--train.tokens_per_batch is 512: batch_size is given too",
    ),
    "rows beside tokens in a file": (train("good.jsonl", "--config", "both.yaml"), "batch_size is given too"),
    "no action": (["adapters"], "give one of combine, convert"),
    "rank that is missing": (["adapters", "rerank", "run", "--out", "OUT"], "give --rank N: rank of the new adapter"),
    "pattern without value": (train("good.jsonl", "--lora.rank_pattern", "q_proj=8"), "such as '{name: 8}'"),
    "pattern of no layer": (train("good.jsonl", "--lora.rank_pattern", "{q_prj: 2}"), "by the end of their paths"),
    "conversion of a table": (["adapters", "convert", "latin.csv", "--out", "OUT"], "give an adapter's own file"),
    "device that is none": (
        train("good.jsonl", "--device", "warp"),
        "--device 'warp' is no device",
    ),
    "rank beyond the layer": (train("good.jsonl", "--lora.rank", "1000"), "more than the layer"),
    "pipe as data": (train("fifo.csv"), "is not a regular file"),
    **{
        f"{what} as {flag or 'data'}": (
            train(*([] if flag == "DATA" else ["good.jsonl", flag]), path),
            "is not a regular file",
        )
        for flag in ("DATA", "--config", "--template", "--data.target", "--eval-data", "--test-data")
        for what, path in (("a pipe", "fifo.csv"), ("a device", "/dev/zero"))
    },
    "device as adapter": (train("good.jsonl", "--adapter", "/dev/zero"), "/dev/zero"),
    "device as base": (
        ["train", "good.jsonl", *TEMPLATES, "--base", "zero.gguf", "--out", "OUT"],
        "zero.gguf",
    ),
    "pipe as judged rows": (["generate", "run", "--data", "fifo.csv"], "is not a regular file"),
    "device as a metric": (["eval", "run", "good.jsonl", "--metric", "zero.py:f"], "there is no file zero.py"),
    "device as a run": (["eval", "/dev/zero", "good.jsonl"], "/dev/zero"),
    "device as a run to resume": (["train", "--resume", "/dev/zero"], "/dev/zero"),
    "device as a run to look at": (["runs", "show", "/dev/zero"], "/dev/zero"),
    "device to convert": (["adapters", "convert", "/dev/zero", "--out", "OUT"], "is not a regular file"),
    "pipe to convert": (["adapters", "convert", "fifo.csv", "--out", "OUT"], "is not a regular file"),
    "place that is no place": (train("good.jsonl", out="/proc/x"), "cannot write /proc/x"),
    "revision of a catalogue name": (["models", "show", "starter", "--revision", "v1"], "is pinned"),
    "unknown command": (["trian", "good.jsonl"], "invalid choice: 'trian'"),
    "model that does not exist": (["models", "show", "startr"], "Did you mean 'starter'"),
    "model without name": (["models", "pull"], "takes 1 NAME"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, place: Path, tiny_folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    arguments, words = CASES[name]
    before = {p: p.stat().st_mtime_ns for p in place.rglob("*")}
    monkeypatch.chdir(place)
    code = main([{"BASE": str(tiny_folder), "OUT": str(tmp_path / "out")}.get(word, word) for word in arguments])
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert words in captured.err
    assert captured.err.strip().splitlines()[-1].startswith(("afina: ", "  "))
    assert captured.err.count("afina: ") == 1
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert {p: p.stat().st_mtime_ns for p in place.rglob("*")} == before
    assert not (tmp_path / "out").exists()


def run_afina(arguments: list[str], place: Path, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "afina", *arguments]
    return subprocess.run(command, cwd=place, stderr=subprocess.PIPE, text=True, check=False, **options)


def test_standard_output_on_a_full_disk(place: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = run_afina(["models", "list"], place, stdout=full)
    assert done.returncode == 2
    assert "cannot write standard output: no space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_reader_that_leaves_is_no_error(place: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = run_afina(["models", "list"], place, stdout=write_end)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")


def test_news_that_cannot_be_told_do_not_end_the_work(place: Path, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = forked.run(["generate", "run", "Hi", "--device", "cpu"], tmp_path, cwd=place, stderr=full)
    assert done.returncode == 0


def test_file_size_limit(place: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """The adapter's weights do not fit: a message, and no half of a file."""
    arguments = train("good.jsonl", base=str(tiny_folder), out=str(tmp_path / "out"))
    done = forked.run(arguments, tmp_path, cwd=place, file_limit=20_000)
    assert done.returncode == 2, done.stderr
    assert "exceed the size limit" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    assert not list((tmp_path / "out").rglob(".*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_place_without_permission(place: Path, tiny_folder: Path, tmp_path: Path, capsys) -> None:
    tmp_path.chmod(0o500)
    assert main(train(str(place / "good.jsonl"), base=str(tiny_folder), out=str(tmp_path / "out"))) == 2
    assert "permission denied" in capsys.readouterr().err
