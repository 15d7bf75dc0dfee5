"""`afina adapters` on real runs of a tiny model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import afina
from afina.jobs.adapters import diff_adapters
from afina.lora import read_config
from afina.ui.cli import main


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs that differ in their seed, and rank."""
    folder = tmp_path_factory.mktemp("runs")
    rows = [{"prompt": f"{'a' if i % 2 else 'b'}{i:02d}", "completion": "red" if i % 2 else "blue"} for i in range(60)]
    (folder / "colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, rank in (("one", 4), ("two", 8)):
        settings = {
            "base": str(tiny_folder),
            "out": folder / name,
            "seed": rank,
            "precision": "fp32",
            "data": {"path": folder / "colours.jsonl"},
            "train": {"epochs": 1},
            "lora": {"rank": rank},
        }
        afina.train(afina.RunSettings(**settings))
    return folder / "one", folder / "two"


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["adapters", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_list_and_show(runs: tuple[Path, Path], capsys) -> None:
    code, out, _ = ask(capsys, "list", runs[0].parent, "--json")
    assert code == 0
    assert [entry["rank"] for entry in json.loads(out)] == [4, 8]
    _, out, _ = ask(capsys, "show", runs[1])
    assert "rank" in out
    assert "classification" in out


def test_diff(runs: tuple[Path, Path], capsys) -> None:
    same = diff_adapters(runs[0], runs[0])
    assert same["settings"] == {}
    assert same["cosine"] == pytest.approx(1, abs=1e-5)
    assert same["distance"] == pytest.approx(0, abs=1e-3)
    code, out, _ = ask(capsys, "diff", *runs, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["settings"]["rank"] == [4, 8]
    assert -1 < found["cosine"] < 0.9
    assert len(found["layers"]) == 14


def test_diff_of_different_bases(runs: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    wide = shutil.copytree(runs[0] / "adapter", tmp_path / "wide")
    path = wide / "adapter_model.safetensors"
    save_file({name: torch.cat([value, value], 1) for name, value in load_file(path).items()}, path)
    code, _, err = ask(capsys, "diff", runs[0], wide)
    assert code == 2
    assert "different bases" in err


def test_combined_and_cut_adapters_can_be_asked(runs: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    assert ask(capsys, "combine", *runs, "--weights", "0.5,0.5", "--out", tmp_path / "both")[0] == 0
    assert read_config(tmp_path / "both").rank == 8
    assert ask(capsys, "rerank", runs[1], "--rank", 2, "--out", tmp_path / "less")[0] == 0
    for folder in (tmp_path / "both", tmp_path / "less"):
        assert afina.generate(folder, ["a07"])[0]["answer"] is not None
    code, _, err = ask(capsys, "rerank", runs[1], "--rank", 2, "--out", tmp_path / "less")
    assert code == 2
    assert "holds something already" in err


def test_merged_is_the_adapted_model(runs: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    code, out, _ = ask(capsys, "merge", runs[0], "--out", tmp_path / "merged", "--json")
    assert code == 0
    assert json.loads(out)["largest_difference_of_logits"] < 1e-5
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    base = afina.load_base(str(tmp_path / "merged"), precision="fp32", device="cpu")
    ids = base.tokenizer.encode("a07")
    assert torch.isfinite(model(torch.tensor([ids])).logits).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show"], "takes 1 RUN"),
        (["merge", "RUN"], "needs --out"),
        (["rerank", "RUN", "--out", "OUT"], "needs --rank"),
        (["combine", "RUN", "RUN", "--weights", "1,x", "--out", "OUT"], "not numbers"),
        (["combine", "RUN", "RUN", "--kind", "sum", "--out", "OUT"], "choose from linear"),
        (["combine", "RUN", "RUN", "--density", "0", "--kind", "ties", "--out", "OUT"], "density"),
        (["show", "nowhere"], "no such folder"),
        (["list", "nowhere"], "no such folder"),
        (["rerank", "RUN", "--rank", "99", "--out", "OUT"], "has rank 4"),
        (["boil"], "invalid choice"),
    ],
)
def test_bad_input(arguments: list[str], message: str, runs: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    names = {"RUN": runs[0], "OUT": tmp_path / "out"}
    code, _, err = ask(capsys, *(names.get(a, a) for a in arguments))
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
