"""`afina adapters` on real runs of a tiny model."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, evaluate, generate, save_tiny, tiny_config, tiny_module
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import afina
from afina.core.errors import AdapterError, AfinaError
from afina.jobs.adapters.diff import DiffAdaptersSettings, diff
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
            "train": {"epochs": 1, "learning_rate": 0.002},  # higher ones leave a model that rounding upsets
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
    assert {"lora.rank", "lora.eva_rho", "size, MB"} <= {re.split(" {2,}", line)[0] for line in out.splitlines()}
    assert "classification" in out


def peft_folder(folder: Path, base: object, **changes: object) -> Path:
    """An adapter of the tiny model that PEFT made, and what its configuration says otherwise."""
    twin = get_peft_model(tiny_module(), PeftConfig(r=2, target_modules=["q_proj"]))
    twin.save_pretrained(folder)
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text()) | {"base_model_name_or_path": base} | changes
    path.write_text(json.dumps(settings))
    return folder


def test_the_list_shows_the_good_ones_and_what_is_wrong_with_the_others(
    runs: tuple[Path, Path], tmp_path: Path, capsys
) -> None:
    good = peft_folder(tmp_path / "a" / "good", "/home/alice/llama")
    shutil.copytree(runs[0], tmp_path / "run")
    shutil.copytree(good, tmp_path / ".hidden")
    wrong: dict[str, tuple[str, str]] = {}  # by folder: the problem, and the remedy

    def broken(name: str, problem: str, remedy: str) -> Path:
        wrong[name] = problem, remedy
        return shutil.copytree(good, tmp_path / "b" / name)

    (broken("json", "is not valid JSON", "") / "adapter_config.json").write_text("{")
    (broken("list", "peft_type is 'list'", "") / "adapter_config.json").write_text("[]")
    peft_folder(broken("kind", "peft_type is 'PROMPT_TUNING'", ""), "x", peft_type="PROMPT_TUNING")
    peft_folder(broken("option", "use_qalora = True", ""), "x", use_qalora=True)
    peft_folder(broken("alpha", "is not a complete LoRA configuration", "copy it again"), "x", lora_alpha=None)
    (broken("none", "cannot read", "must hold the adapter's weights") / "adapter_model.safetensors").unlink()
    path = broken("cut", "is damaged", "copy it again") / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    path = broken("pointer", "is a git-lfs pointer", "git lfs pull") / "adapter_model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    path = broken("nan", "q_proj.lora_A.weight holds numbers that are not finite", "train again")
    path /= "adapter_model.safetensors"
    save_file({name: value + float("nan") for name, value in load_file(path).items() if "lora_A" in name}, path)
    path = broken("bin", "adapter_model.bin only, a pickle", "afina adapters convert")
    torch.save(load_file(path / "adapter_model.safetensors"), path / "adapter_model.bin")
    (path / "adapter_model.safetensors").unlink()
    (broken("alone", "but no adapter_config.json", "copy it from where it was made") / "adapter_config.json").unlink()
    path = broken("mlx", "is mlx-lm's, not PEFT's", "afina adapters convert") / "adapter_config.json"
    path.write_text('{"fine_tune_type": "lora", "lora_parameters": {"scale": 1.0}}')
    peft_folder(tmp_path / "odd base", ["no", "name"])

    code, out, err = ask(capsys, "list", tmp_path, "--json")
    lost = "/home/alice/llama, which is not here: name its base with --base"
    assert [line for line in err.splitlines() if "not here" in line] == [f"warning: adapter {good} was made on {lost}"]
    found = {Path(entry["path"]): entry for entry in json.loads(out)}
    assert code == 0
    usable = {path for path, entry in found.items() if "problems" not in entry}
    assert usable == {good, tmp_path / "run" / "adapter", tmp_path / "odd base"}
    assert found[good]["base"] == "/home/alice/llama"
    assert found[tmp_path / "odd base"]["base"] is None
    assert {path.name for path in found.keys() - usable} == set(wrong)
    for name, (problem, remedy) in wrong.items():
        entry = found[tmp_path / "b" / name]
        assert problem in entry["problems"][0], name
        assert remedy in entry["remedy"], name
    code, out, _ = ask(capsys, "list", tmp_path)
    assert code == 0
    assert f"{good}: /home/alice/llama, rank 2" in out
    assert f"{tmp_path / 'b' / 'bin'}: cannot be used" in out
    for name, (problem, _) in wrong.items():
        code, _, err = ask(capsys, "show", tmp_path / "b" / name)
        assert (code, problem in err or name == "alone") == (2, True), name


@pytest.mark.parametrize(
    "name",
    [
        "/home/alice/models/llama",
        "../models/llama",
        "C:\\models\\llama",
        "./output/checkpoint-500",
        "~/llama",
        "llama-of-mine",
        "/home/alice/model.gguf",
        None,
        "",
        ["meta-llama/Llama"],
        7,
    ],
)
def test_a_base_that_is_not_here_is_named_with_base(
    name: object, tiny_folder: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = peft_folder(tmp_path / "adapter", name)
    for command in (["generate", folder, "a"], ["adapters", "merge", folder, "--out", tmp_path / "out"]):
        assert main([*map(str, command)]) == 2
        err = capsys.readouterr().err
        assert "name it with --base BASE" in err
        assert (f"was made on the base {name!r}" if name and isinstance(name, str) else "does not name its base") in err
        assert "Traceback" not in err
    assert main(["generate", str(folder), "a", "--base", str(tiny_folder)]) == 0


def test_a_run_whose_base_was_moved(runs: tuple[Path, Path], tiny_folder: Path, tmp_path: Path, capsys) -> None:
    moved = shutil.copytree(runs[0], tmp_path / "run")
    path = moved / "adapter" / "afina.json"
    facts = json.loads(path.read_text())
    facts["load"]["name"] = str(tmp_path / "gone")
    path.write_text(json.dumps(facts))
    assert main(["generate", str(moved), "a07"]) == 0  # its settings know where the base is
    config = moved / "config.yaml"
    config.write_text(config.read_text().replace(str(tiny_folder), str(tmp_path / "gone")))
    assert main(["generate", str(moved), "a07"]) == 2
    assert "name it with --base BASE" in capsys.readouterr().err
    assert main(["generate", str(moved), "a07", "--base", str(tiny_folder)]) == 0


def test_what_an_adapter_names_beyond_its_base_is_said(tiny_folder: Path, tmp_path: Path, capsys) -> None:
    folder = peft_folder(tmp_path / "adapter", str(tiny_folder), target_modules=["q_proj", "query_key_value"])
    for command in (["generate", folder, "a"], ["adapters", "merge", folder, "--out", tmp_path / "out"]):
        assert main([*map(str, command)]) == 0
        assert "'query_key_value' matches no layer" in capsys.readouterr().err


def test_diff(runs: tuple[Path, Path], capsys) -> None:
    same = diff(DiffAdaptersSettings(first=runs[0], second=runs[0]))
    assert same.settings == {}
    assert same.cosine == pytest.approx(1, abs=1e-5)
    assert same.distance == pytest.approx(0, abs=1e-3)
    code, out, _ = ask(capsys, "diff", *runs, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["settings"]["rank"] == [4, 8]
    assert -1 < found["cosine"] < 0.9
    assert len(found["layers"]) == 14


def test_diff_of_different_bases(runs: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    wide = shutil.copytree(runs[0] / "adapter", tmp_path / "wide")
    path = wide / "adapter_model.safetensors"
    state = load_file(path)
    save_file(
        {name: torch.cat([value, value], 1) if "lora_A" in name else value for name, value in state.items()}, path
    )
    code, _, err = ask(capsys, "diff", runs[0], wide)
    assert code == 2
    assert "different bases" in err


def test_adapters_of_different_bases_are_not_compared_or_combined(
    runs: tuple[Path, Path], tiny_folder: Path, tmp_path: Path, capsys
) -> None:
    """By the hash of the weights where it is known; names alone may be two of one base."""
    other = shutil.copytree(runs[1] / "adapter", tmp_path / "other")
    facts = json.loads((other / "afina.json").read_text())
    facts["base"] |= {"name": "another", "sha256": "f" * 64}
    (other / "afina.json").write_text(json.dumps(facts))
    for command in (["diff", runs[0], other], ["combine", runs[0], other, "--out", tmp_path / "sum"]):
        code, out, err = ask(capsys, *command)
        assert (code, out) == (2, "")
        assert "the adapters are for different bases" in err
        assert f"{other}: another (weights ffffffffffff…)" in err
        assert not (tmp_path / "sum").exists()
    unknown = [peft_folder(tmp_path / name, f"/home/{name}/llama") for name in ("alice", "bob")]
    code, out, err = ask(capsys, "diff", *unknown)
    assert code == 0
    assert "the adapters name different bases, taken for the same" in err
    assert "/home/alice/llama → /home/bob/llama" in out
    assert "(" not in out
    same = peft_folder(tmp_path / "carol", "/home/bob/llama")
    assert "different bases" not in ask(capsys, "diff", unknown[1], same)[2]


def test_combined_and_cut_adapters_can_be_asked(runs: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    assert ask(capsys, "combine", *runs, "--weights", "0.5,0.5", "--out", tmp_path / "both")[0] == 0
    assert read_config(tmp_path / "both").rank == 8
    assert ask(capsys, "rerank", runs[1], "--rank", 2, "--out", tmp_path / "less")[0] == 0
    for folder in (tmp_path / "both", tmp_path / "less"):
        assert generate(folder, ["a07"])[0]["answer"] is not None
    code, _, err = ask(capsys, "rerank", runs[1], "--rank", 2, "--out", tmp_path / "less")
    assert code == 2
    assert "is not empty" in err


def test_merged_is_the_adapted_model(runs: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    code, out, _ = ask(capsys, "merge", runs[0], "--out", tmp_path / "merged", "--json")
    assert code == 0
    assert json.loads(out)["differences"]["fp32"] < 1e-5
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    base = afina.load_base(str(tmp_path / "merged"), precision="fp32", device="cpu")
    ids = base.tokenizer.encode("a07")
    assert torch.isfinite(model(torch.tensor([ids])).logits).all()
    asked = [generate(folder, ["a07"])[0]["answer"] for folder in (runs[0], tmp_path / "merged")]
    assert asked[0] == asked[1]
    events: list = []
    with pytest.raises(AdapterError, match="leave --base-too out"):
        afina.generate(afina.GenerateSettings(run=tmp_path / "merged", prompts=["a07"], base_too=True), events.append)
    assert events == []  # before any answer is generated
    with pytest.raises(AdapterError, match="leave out --base and --force"):
        generate(tmp_path / "merged", ["a07"], base="starter")
    assert ask(capsys, "merge", tmp_path / "merged", "--out", tmp_path / "again")[0] == 2
    with pytest.raises(AdapterError, match="without a base to compare"):
        evaluate(tmp_path / "merged", tmp_path / "none.jsonl")


def test_another_base_is_taken_by_force_only(runs: tuple[Path, Path], tmp_path: Path, tiny_folder: Path) -> None:
    copy = save_tiny(tmp_path / "copy")  # the same weights
    other = save_tiny(tmp_path / "other", seed=1)
    own = generate(runs[0], ["a07"])
    assert generate(runs[0], ["a07"], base=str(copy)) == own
    with pytest.raises(AdapterError, match="--force uses this one"):
        generate(runs[0], ["a07"], base=str(other))
    assert generate(runs[0], ["a07"], base=str(other), force=True)[0]["prompt"] == "a07"
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(AdapterError, match="another tokenizer"):
        generate(runs[0], ["a07"], base=str(copy))


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_a_quantised_base_from_training_to_merging(quantize: str, colours: Path, tmp_path: Path, capsys) -> None:
    config = tiny_config()
    config.hidden_size = config.intermediate_size = 64
    torch.manual_seed(0)
    folder = tmp_path / "wide"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    settings = {
        "base": str(folder), "out": tmp_path / "run", "precision": "fp32", "device": "cpu", "quantize": quantize,
        "data": {"path": colours, "prompt": "{q}", "completion": "{a}"}, "train": {"epochs": 3, "learning_rate": 0.002},
        "lora": {"init": "loftq", "rank": 4},
    }  # fmt: skip
    result = afina.train(afina.RunSettings(**settings))
    assert result.verification.from_training < 1e-5
    facts = json.loads((result.adapter / "afina.json").read_text())
    assert facts["quantize"] == quantize
    code, out, _ = ask(capsys, "merge", result.folder, "--out", tmp_path / "merged", "--json")
    assert code == 0
    assert json.loads(out)["differences"]["fp32"] < 1e-5  # it is merged into the base that it was trained on
    merged = afina.load_base(str(tmp_path / "merged"), precision="fp32", device="cpu")
    trained = afina.load_base(str(folder), precision="fp32", device="cpu", quantize=quantize)
    plain = trained.model.module.get_submodule("model.layers.0.mlp.up_proj").dequantised().weight
    path = "base_model.model.model.layers.0.mlp.up_proj"
    state = load_file(result.adapter / "adapter_model.safetensors")
    delta = 8.0 * state[f"{path}.lora_B.weight"] @ state[f"{path}.lora_A.weight"]
    assert torch.allclose(
        merged.model.module.get_submodule("model.layers.0.mlp.up_proj").weight, plain + delta, atol=1e-5
    )
    for wrong, message in (
        ({"method": "full", "lora": {}}, "is quantised"),
        ({"quantize": "keep"}, "is for GGUF files"),
    ):
        with pytest.raises(AfinaError, match=message):
            afina.train(afina.RunSettings(**settings | {"out": tmp_path / "other"} | wrong))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show"], "takes 1 RUN"),
        (["merge", "RUN"], "--out is missing"),
        (["rerank", "RUN", "--out", "OUT"], "--rank is missing"),
        (["merge", "RUN", "--out", "OUT", "--alpha", "3"], "does not read --alpha"),
        (["combine", "RUN", "RUN", "--out", "OUT", "--force"], "does not read --force"),
        (["combine", "RUN", "RUN", "--weights", "1,x", "--out", "OUT"], "--weights is 'x'"),
        (["combine", "RUN", "RUN", "--kind", "sum", "--out", "OUT"], "'linear'"),
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
