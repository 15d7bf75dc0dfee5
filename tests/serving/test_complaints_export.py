"""Complaints about exports of other tools, by their numbers in the list of what must be impossible here."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import byte_tokenizer
from exports import (
    adapter_of,
    adapter_on,
    change_adapter,
    colours_of,
    record,
    recorded_run,
    train,
    without_effect,
    write,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, OPTConfig

import afina
from afina.core.config import build
from afina.core.errors import AdapterError, AfinaError, RunFailed, SettingsError, VerificationFailed
from afina.serving import gguf
from afina.serving.exporters import EXPORTERS
from afina.serving.exporters import gguf as gguf_form
from afina.serving.exporters import gguf_lora as lora_form


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded_run(tmp_path_factory.mktemp("complaints"))


def fresh(run: Path, folder: Path) -> Path:
    """A copy of the run that may be damaged, on the same base."""
    shutil.copytree(run, folder / "run")
    shutil.copytree(run.parent / "base", folder / "base")
    return folder / "run"


def refused_before_training(folder: Path, base: Path, match: str, **settings: Any) -> None:
    given = {"base": str(base), "out": folder / "run", "device": "cpu",
             "data": {"path": colours_of(folder), "prompt": "{q}", "completion": "{a}"}}  # fmt: skip
    said: list[Any] = []
    with pytest.raises(SettingsError, match=match):
        afina.train(build(afina.RunSettings, given | settings), said.append)
    assert not (folder / "run").exists()
    assert not said


@pytest.mark.parametrize(
    ("lora", "match"),
    [
        ({"modules_to_save": "lm_head"}, "trained in full"),
        ({"variant": "dora"}, "dora is more than A and B"),
        ({"target_modules": "q_proj,lm_head"}, "output head lm_head is adapted"),
        ({"target_modules": "q_proj,embed_tokens"}, "embeddings model.embed_tokens are adapted"),
        ({"trainable_tokens": "5-9"}, "rows of the embeddings"),
        ({"bias": "all"}, "biases are trained"),
    ],
)
def test_12_what_an_adapter_cannot_be_shipped_as_is_said_before_training(
    lora: dict[str, Any], match: str, tmp_path: Path, tiny_folder: Path
) -> None:
    refused_before_training(tmp_path, tiny_folder, f"--to gguf-lora: .*{match}", export="gguf-lora", lora=lora)


def test_12_a_method_that_trains_the_base_is_no_adapter(tmp_path: Path, tiny_folder: Path) -> None:
    refused_before_training(tmp_path, tiny_folder, "no LoRA adapter", export="gguf-lora", method="bias")


def test_36_types_disk_template_and_family_are_checked_before_training(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused_before_training(tmp_path, tiny_folder, "its type is one of", export="gguf:Q9_K")
    silent = tmp_path / "silent.jinja"
    silent.write_text("{% for m in messages[-2:] %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}")
    refused_before_training(tmp_path, tiny_folder, "in Go's words", export="ollama", template=silent)
    refused_before_training(tmp_path, tiny_folder, "no token|--base-model", export="hub:owner/name")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    refused_before_training(tmp_path, tiny_folder, "MB are free", export="gguf:Q8_0,safetensors")


def test_36_a_training_whose_export_fails_keeps_its_run(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise AdapterError("the disk is full")

    monkeypatch.setattr(lora_form, "write_adapter", full)
    with pytest.raises(RunFailed, match="is complete, but was not exported") as caught:
        train(tmp_path, tiny_folder, export="gguf-lora")
    assert "afina export" in caught.value.remedy
    assert (tmp_path / "run" / "evaluation.json").is_file()
    assert not (tmp_path / "run" / "export").exists()
    monkeypatch.undo()
    write(tmp_path / "run", "gguf-lora", tmp_path / "run" / "export")


def test_37_the_modelfile_has_the_template_of_training(run: Path, tmp_path: Path) -> None:
    write(run, "ollama,gguf:F16", tmp_path / "out")
    lines = (tmp_path / "out" / "Modelfile").read_text()
    assert lines.startswith("FROM ./run-F16.gguf\n")  # the first type that is asked for
    assert 'TEMPLATE """{{ $last := "" }}{{ range $i, $m := .Messages }}' in lines
    assert "<|im_start|>user\n{{ $m.Content }}<|im_end|>\n" in lines
    assert 'PARAMETER stop "<|im_end|>"\n' in lines
    assert "PARAMETER num_ctx 512\n" in lines
    assert 'SYSTEM """One word."""\n' in lines
    facts = json.loads((run / "adapter" / "afina.json").read_text())
    assert facts["kind"] == "classification"
    assert "PARAMETER temperature 0\n" in lines
    write(run, "ollama", tmp_path / "alone")
    assert (tmp_path / "alone" / "run-Q8_0.gguf").is_file()  # none was asked for


@pytest.mark.parametrize("damage", ["rows", "norm", "zero", "base"])
def test_38_a_file_of_other_weights_is_found_and_thrown_away(
    damage: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fluent nonsense, or the tuning lost on the way, also where quantisation would hide it."""

    def damaged(base: Any, weights: Any, *more: Any) -> Any:
        state = {name: value.clone() for name, value in weights}
        if damage == "rows":
            name = "model.layers.1.self_attn.k_proj.weight"
            state[name] = state[name].roll(1, 0)
        elif damage == "norm":
            state["model.norm.weight"] *= 1.5
        elif damage == "zero":
            state["model.layers.0.mlp.down_proj.weight"].zero_()
        else:
            state |= load_file(run.parent / "base" / "model.safetensors")
        return gguf.write_model(base, state.items(), *more)

    monkeypatch.setattr(gguf_form, "write_model", damaged)
    types = ("F16",) if damage == "base" else ("F16", "Q4_0")
    for type in types:
        with pytest.raises(VerificationFailed, match=r"differs by .* of its size"):
            write(run, f"gguf:{type}", tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_38_a_tokenizer_that_reads_otherwise_is_found(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = gguf_form.load_base

    def other(path: str, **more: Any) -> Any:
        found = read(path, **more)
        found.tokenizer.inner.chat_template = found.tokenizer.inner.chat_template.replace("user", "User").replace(
            "m['role'] }}", "m['role'] | upper }}"
        )
        return found

    monkeypatch.setattr(gguf_form, "load_base", other)
    with pytest.raises(VerificationFailed, match="tokenizer or template reads row 1 otherwise"):
        write(run, "gguf:F16", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_39_a_file_that_is_cut_or_of_another_vocabulary_never_gets_its_name(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model = gguf.write_model

    def cut(base: Any, weights: Any, path: Path, *more: Any) -> Any:
        plan = write_model(base, weights, path, *more)
        path.write_bytes(path.read_bytes()[:-200])
        return plan

    monkeypatch.setattr(gguf_form, "write_model", cut)
    with pytest.raises(AfinaError, match="ends inside"):
        write(run, "gguf:F16", tmp_path / "out")
    assert not list(tmp_path.iterdir())
    form = EXPORTERS["safetensors"]
    write_form = type(form).write

    def shorter(self: Any, *arguments: Any) -> Any:
        written = write_form(self, *arguments)
        path = arguments[1].folder / written.files[0] / "model.safetensors"
        state = load_file(path)
        state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"][:-1].contiguous()
        save_file(state, path, {"format": "pt"})
        return written

    monkeypatch.setattr(type(form), "write", shorter)
    with pytest.raises(AfinaError, match="shape"):
        write(run, "safetensors", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_39_ctrl_c_leaves_nothing_half_written(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    write(run, "gguf-lora", tmp_path / "kept")
    before = record(tmp_path / "kept")
    monkeypatch.setattr(gguf_form, "write_model", interrupted)
    for out in ("kept", "new"):
        with pytest.raises(KeyboardInterrupt):
            write(run, "gguf-lora,gguf:F16", tmp_path / out, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert record(tmp_path / "kept") == before


def test_40_an_adapter_of_the_output_head_is_refused_as_gguf_lora_and_merged(tmp_path: Path) -> None:
    run = adapter_of(tmp_path, "qwen3", target_modules="q_proj,lm_head")
    with pytest.raises(SettingsError, match=r"output head lm_head is adapted, which llama.cpp does not add") as caught:
        write(run, "gguf-lora", tmp_path / "out")
    assert "export gguf:TYPE" in str(caught.value)
    assert not (tmp_path / "out").exists()
    result = write(run, "gguf:F16", tmp_path / "out")
    assert result.forms["gguf:F16"]["differences"]["relative"] < 1e-2


def test_41_a_family_that_is_not_known_is_refused_with_those_that_are(tmp_path: Path) -> None:
    config = OPTConfig(vocab_size=259, hidden_size=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=4,
                       max_position_embeddings=512, word_embed_proj_dim=32, eos_token_id=2)  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    for form in ("gguf:F16", "gguf-lora", "ollama"):
        refused_before_training(tmp_path, tmp_path / "base", "'opt'.*only of .*gemma3.*llama.*qwen3", export=form)
    run = adapter_on(tmp_path / "base", tmp_path / "run")
    assert write(run, "safetensors", tmp_path / "out").forms["safetensors"]["differences"]["relative"] < 1e-3


def test_42_ollama_gets_the_merged_model_and_the_older_way_says_its_version(run: Path, tmp_path: Path) -> None:
    write(run, "ollama,gguf-lora", tmp_path / "out")
    plain, older = ((tmp_path / "out" / name).read_text() for name in ("Modelfile", "Modelfile.adapter"))
    assert "ADAPTER" not in plain
    assert plain.startswith("FROM ./run-Q8_0.gguf\n")
    assert older.startswith("# Ollama 0.34.0 or older")
    assert "ADAPTER ./run-lora.gguf\n" in older
    assert "0.34.0" in (tmp_path / "out" / "EXPORT.md").read_text()
    write(run, "ollama", tmp_path / "alone")
    assert not (tmp_path / "alone" / "Modelfile.adapter").exists()


def test_1_43_an_adapter_that_changes_nothing_is_refused(run: Path, tmp_path: Path) -> None:
    idle = fresh(run, tmp_path)
    change_adapter(idle, without_effect)
    for form in ("gguf-lora", "gguf:F16", "safetensors"):
        with pytest.raises(AdapterError, match="the adapter changes nothing"):
            write(idle, form, tmp_path / "out", base=str(tmp_path / "base"))
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("factor", [0.0, 0.5, -1.0])
def test_43_a_gguf_adapter_without_or_with_another_effect_is_refused(
    factor: float, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe looks at what the exported file does, not at what was meant."""

    def other(base: Any, folder: Path, *more: Any) -> Any:
        copy = tmp_path / "other"
        shutil.copytree(folder, copy)
        path = copy / "adapter_model.safetensors"
        state = {name: value * factor if "lora_B" in name else value for name, value in load_file(path).items()}
        save_file(state, path, {"format": "pt"})
        return gguf.write_adapter(base, copy, *more)

    monkeypatch.setattr(lora_form, "write_adapter", other)
    with pytest.raises(VerificationFailed, match=r"differs by (0\.5|1|2) of its size"):
        write(run, "gguf-lora", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "lora",
    [
        {"rank": 4, "rslora": True},
        {"rank": 4, "rank_pattern": {"q_proj": 2, "0.mlp.up_proj": 7}, "alpha_pattern": {"v_proj": 5.0}},
        {"rank": 4, "init": "pissa"},
    ],
)
def test_43_every_scale_of_lora_is_that_of_the_file(lora: dict[str, Any], tmp_path: Path) -> None:
    run = adapter_of(tmp_path, **lora)
    form = write(run, "gguf-lora", tmp_path / "out").forms["gguf-lora"]
    assert form["differences"]["relative"] < 1e-2
    assert form["differences"]["kl"] < 0.01 * record(tmp_path / "out")["effect_kl"]


def test_44_a_base_of_this_disk_is_asked_for_before_anything_is_uploaded(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with pytest.raises(SettingsError, match="'base' is not from there; say which it is with --base-model"):
        write(run, "hub:owner/name,gguf-lora", tmp_path / "out")
    with pytest.raises(SettingsError, match="it takes OWNER/NAME"):
        write(run, "hub:owner/name", tmp_path / "out", base_model="/home/me/base")
    assert not (tmp_path / "out").exists()
    refused_before_training(tmp_path, run.parent / "base", "--base-model", export="hub:owner/name")
