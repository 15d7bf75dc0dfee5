"""`afina export`: what is written, that it is what was trained, and what is refused."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, tiny_config
from exports import adapter_of, adapter_on, record, recorded_run, train, write
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import afina
from afina.core.errors import AdapterError, OutputError, SettingsError
from afina.core.files import read_jsonl
from afina.jobs._opening import OpenSettings
from afina.jobs.export import _folder as export_folder
from afina.models import through_transformers
from afina.models.load import load_base
from afina.runs.opening import open_run
from afina.serving.adapters import Card
from afina.serving.exporters import EXPORTERS, Exporter, Form, Making, Written, forms_of
from afina.serving.proof import logits, sample
from afina.ui.cli import main

ALL = "gguf:F16,gguf:Q8_0,gguf:Q4_0,gguf-lora,safetensors,ollama"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded_run(tmp_path_factory.mktemp("exports"))


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "all"
    write(run, ALL, out)
    return out


def test_everything_lies_flat_and_is_named_by_its_hash(run: Path, exported: Path) -> None:
    names = {path.name for path in exported.iterdir()}
    assert names == {
        "run-F16.gguf", "run-Q8_0.gguf", "run-Q4_0.gguf", "run-lora.gguf", "run-merged", "Modelfile",
        "Modelfile.adapter", "EXPORT.md", "export.json",
    }  # fmt: skip
    found = record(exported)
    for name, facts in found["files"].items():
        content = (exported / name).read_bytes()
        assert (facts["bytes"], facts["sha256"]) == (len(content), hashlib.sha256(content).hexdigest()), name
    adapter = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert found["adapter"]["sha256"] == hashlib.sha256(adapter).hexdigest()
    assert found["adapter"]["hash"] == Card.read(run).hash  # with which a server signs
    facts = json.loads((run / "adapter" / "afina.json").read_text())
    assert found["base"]["sha256"] == facts["base"]["sha256"]
    assert set(found["forms"]) == set(ALL.split(","))


def test_each_form_is_compared_with_the_adapted_model(exported: Path) -> None:
    found = record(exported)
    differences = {name: form["differences"] for name, form in found["forms"].items() if "differences" in form}
    assert set(differences) == {*ALL.split(",")} - {"ollama"}
    for name in ("safetensors", "gguf-lora", "gguf:F16"):
        assert differences[name]["kl"] < 1e-4, name
        assert differences[name]["first_tokens"] == 1, name
        assert differences[name]["difference"]["value"] == 0, name
    assert (
        differences["gguf:F16"]["largest"] < differences["gguf:Q8_0"]["largest"] < differences["gguf:Q4_0"]["largest"]
    )
    assert differences["gguf:F16"]["kl"] < differences["gguf:Q8_0"]["kl"] < differences["gguf:Q4_0"]["kl"]
    for each in differences.values():
        assert 0 <= each["mean"] <= each["largest"]
        low, high = each["interval"]
        assert low is None or low <= each["score"] <= high
    assert found["rows"] == {"count": 4, "source": "held-out rows"}
    assert found["effect_kl"] > 0


def test_the_numbers_are_those_of_an_independent_reading(run: Path, exported: Path) -> None:
    """transformers reads the merged model and PEFT's adapter on the base gives the same logits."""
    from peft import PeftModel

    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    base = AutoModelForCausalLM.from_pretrained(run.parent / "base")
    twin = PeftModel.from_pretrained(base, run / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(exported / "run-merged", dtype=torch.float32).eval()
    ids = torch.randint(3, 259, (2, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = twin(ids).logits, merged(ids).logits
    assert (expected - found).abs().max() / expected.abs().max() < 1e-5
    read = load_base(str(exported / "run-F16.gguf"), precision="fp32", device="cpu")
    rows = sample(read)
    with torch.no_grad():
        ours, theirs = logits(read, rows), logits(open_run(run, device="cpu", exact=True).base, rows)
    assert (ours - theirs).abs().max() / theirs.abs().max() < 1e-2


def test_the_guide_has_command_lines_with_the_names(exported: Path) -> None:
    text = (exported / "EXPORT.md").read_text()
    for line in (
        "llama-cli -m run-Q8_0.gguf", "llama-server -m run-F16.gguf", "lms import run-Q4_0.gguf",
        "--lora run-lora.gguf", "ollama create run -f Modelfile", "vllm serve ./run-merged",
        'AutoModelForCausalLM.from_pretrained("run-merged")',
    ):  # fmt: skip
        assert line in text, line
    assert str(exported.parent) not in text


def test_the_guide_s_lines_write_the_base_s_file(run: Path, exported: Path, tmp_path: Path, monkeypatch: Any) -> None:
    text = (exported / "EXPORT.md").read_text()
    assert "llama-cli -m base-F16.gguf --lora run-lora.gguf" in text
    assert record(exported)["base"]["sha256"] in text
    assert "FROM ./base-F16.gguf\nADAPTER" in (exported / "Modelfile.adapter").read_text()
    lines = [line[4:] for line in text.split("Afina writes one so:")[1].split("llama.cpp takes")[0].splitlines()]
    monkeypatch.chdir(tmp_path)
    exec("\n".join(lines).replace("path/to/base", str(run.parent / "base")), {})
    base, read = (
        load_base(str(path), precision="fp32", device="cpu") for path in (run.parent / "base", "base-F16.gguf")
    )
    rows = sample(read)
    with torch.no_grad():
        ours, theirs = logits(read, rows), logits(base, rows)
    assert (ours - theirs).abs().max() / theirs.abs().max() < 1e-2


def test_beside_a_base_of_gguf_the_guide_names_that_file(run: Path, exported: Path, tmp_path: Path) -> None:
    shutil.copy(exported / "run-F16.gguf", tmp_path / "my base.gguf")
    write(adapter_on(tmp_path / "my base.gguf", tmp_path / "made"), "gguf-lora", tmp_path / "out")
    text = (tmp_path / "out" / "EXPORT.md").read_text()
    assert "llama-cli -m 'my base.gguf' --lora made-lora.gguf" in text
    assert hashlib.sha256((tmp_path / "my base.gguf").read_bytes()).hexdigest() in text
    assert "copy it here" in text
    assert str(tmp_path) not in text


def test_the_merged_folder_is_one_for_other_programs(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(through_transformers, "SHARD", "20KB")
    write(run, "safetensors:fp16", tmp_path / "out")
    folder = tmp_path / "out" / "run-merged"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    assert {path.name for path in shards} == set(index["weight_map"].values())
    state = {name: value for path in shards for name, value in load_file(path).items()}
    assert not any(name.startswith("lm_head") for name in state)  # it is tied
    assert {value.dtype for value in state.values()} == {torch.float16}
    template = (folder / "chat_template.jinja").read_text()
    assert json.loads((folder / "tokenizer_config.json").read_text())["chat_template"] == template
    chat = [{"role": "user", "content": "a07"}]
    own = AutoTokenizer.from_pretrained(folder).apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert own == "<|im_start|>user\na07<|im_end|>\n<|im_start|>assistant\n"
    assert afina.generate(afina.GenerateSettings(run=folder, prompts=["a07"], device="cpu")).rows[0]["answer"]


@pytest.mark.parametrize("kind", ["qwen3", "gemma3", "gpt2"])
def test_every_family_in_all_forms(kind: str, tmp_path: Path) -> None:
    run = adapter_of(tmp_path, kind)
    result = write(run, "gguf:F16,gguf:Q8_0,gguf-lora,safetensors", tmp_path / "out")
    for name, form in result.forms.items():
        assert form["differences"]["kl"] < 0.01, name


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_a_quantised_base_is_merged_as_it_was_trained(quantize: str, tmp_path: Path) -> None:
    config = tiny_config("qwen3")
    config.hidden_size = config.intermediate_size = 64  # whole blocks
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    run = adapter_on(tmp_path / "base", tmp_path / "run", quantize)
    result = write(run, "safetensors:fp32,gguf-lora", tmp_path / "out")
    assert result.forms["safetensors:fp32"]["differences"]["relative"] < 1e-5
    assert result.forms["gguf-lora"]["differences"]["relative"] < 1e-2


def test_where_the_data_are_gone_predictions_are_compared(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("colours.jsonl", "gone.jsonl"))
    base = {"base": str(run.parent / "base")}
    result = write(copy, "safetensors", tmp_path / "one", **base)
    assert record(tmp_path / "one")["rows"]["source"] == "prompts of predictions.jsonl"
    assert result.score is not None
    count = len(read_jsonl(copy / "predictions.jsonl"))
    assert record(tmp_path / "one")["rows"]["count"] == min(4, count)
    (copy / "predictions.jsonl").unlink()
    write(copy, "safetensors", tmp_path / "two", **base)
    assert record(tmp_path / "two")["rows"] == {"count": 4, "source": "general text"}


def test_a_bare_adapter_is_exported_too(run: Path, tmp_path: Path) -> None:
    write(run / "adapter", "gguf-lora", tmp_path / "in-run")
    assert (tmp_path / "in-run" / "run-lora.gguf").is_file()
    shutil.copytree(run / "adapter", tmp_path / "mine")
    for name in ("afina.json", "README.md"):
        (tmp_path / "mine" / name).unlink()
    write(tmp_path / "mine", "gguf-lora", tmp_path / "out", base=str(run.parent / "base"), name="my adapter!")
    assert (tmp_path / "out" / "my-adapter-lora.gguf").is_file()


def test_an_export_is_replaced_only_when_asked_and_only_an_export(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(run, "gguf-lora", out)
    before = record(out)
    with pytest.raises(OutputError, match="already holds an export"):
        write(run, "safetensors", out)
    assert record(out) == before
    write(run, "safetensors", out, overwrite=True)
    assert {path.name for path in out.iterdir()} == {"run-merged", "EXPORT.md", "export.json"}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        write(run, "safetensors", tmp_path / "full", overwrite=True)


def test_two_exports_into_one_folder_are_told_before_the_second_does_anything(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(run, "gguf-lora", tmp_path / "old")
    monkeypatch.delattr(OpenSettings, "open")  # nothing is read
    for name, overwrite in (("new", False), ("old", True)):
        out = tmp_path / name
        with export_folder(out, overwrite):
            with pytest.raises(OutputError, match="another process is writing into"):
                write(run, "gguf-lora", out, overwrite=overwrite)
            with pytest.raises(OutputError, match="another process is writing into"), export_folder(out, overwrite):
                pass
    with pytest.raises(RuntimeError, match="broken"), export_folder(tmp_path / "broken", False):
        raise RuntimeError("broken")
    assert not (tmp_path / "broken").exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "/x", "."])
def test_a_name_that_is_a_path_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="it is a path, not a name"):
        write(run, "gguf-lora", tmp_path / "out", name=name)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file is a file"):
        write(run, "gguf-lora", tmp_path / "file")


def test_words_that_name_no_form_are_all_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "ggufs,gguf:Q9,gguf,safetensors:int4,gguf-lora:F16,hub:name,ollama:x"
    assert main(["export", str(run), "--to", words, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    for word in words.split(","):
        assert f"--to {word}:" in said, word
    assert "Q4_K_M" in said
    assert not (tmp_path / "out").exists()
    assert main(["export", str(run), "--to", "safetensors", "--public", "--out", str(tmp_path / "out")]) == 2
    assert "hub:OWNER/NAME only" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="names no form"):
        forms_of([])


def test_a_merged_model_has_no_adapter_to_export(run: Path, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="merged already"):
        write(exported / "run-merged", "gguf:F16", tmp_path / "out")


def test_the_table_is_shown_and_json_holds_it(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["export", str(run), "--to", "gguf:Q8_0,gguf-lora", "--rows", "4", "--device", "cpu"]
    assert main([*given, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    for word in ("adapted model", "gguf:Q8_0", "gguf-lora", "KL per token", "EXPORT.md"):
        assert word in shown, word
    assert main([*given, "--out", str(tmp_path / "more"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["forms"]["gguf:Q8_0"]["differences"]["kl"] >= 0


class _Notes(Exporter):
    """A form from outside."""

    name = "notes"

    def write(self, form: Form, making: Making) -> Written:
        (making.folder / "NOTES.txt").write_text(making.subject.name)
        return Written(("NOTES.txt",))


def test_a_form_from_outside_is_one_object(run: Path, tmp_path: Path) -> None:
    with EXPORTERS.added(_Notes()):
        result = write(run, "notes", tmp_path / "out")
    assert (tmp_path / "out" / "NOTES.txt").read_text() == "run"
    assert result.forms["notes"]["files"] == ["NOTES.txt"]


def test_training_exports_in_the_end_and_resuming_knows_it(tmp_path: Path, tiny_folder: Path) -> None:
    run = train(tmp_path, tiny_folder, export="gguf-lora,safetensors")
    assert (run / "export" / "run-lora.gguf").is_file()
    assert record(run / "export")["forms"].keys() == {"gguf-lora", "safetensors"}
    config = (run / "config.yaml").read_text()
    assert "export:\n- gguf-lora\n- safetensors\n" in config
