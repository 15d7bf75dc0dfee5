"""What `adapters merge` writes, in which number format, and what it refuses to write."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, tiny_config, tiny_module
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

from afina.core.config import build
from afina.core.errors import BaseModelError, VerificationFailed
from afina.jobs.adapters import merge as job
from afina.jobs.adapters.merge import MergeAdapterResult, MergeAdapterSettings
from afina.lora import LoraConfig, inject, load_adapter, merge
from afina.measure.verification import relative_difference
from afina.models.load import load_base
from afina.ui.cli import main

IDS = torch.randint(3, 259, (2, 12), generator=torch.Generator().manual_seed(1))


def logits(model: Any, **inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, **inputs).logits.float()


def randomise(model: Any, scale: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = parameter.data + (scale * noise).to(parameter.dtype)


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def adapter(base: Any, folder: Path, scale: float = 0.1, **settings: Any) -> Any:
    """PEFT's adapter of `base`, in `folder`; the adapted model."""
    twin = get_peft_model(copy.deepcopy(base), PeftConfig(r=4, lora_alpha=8, **settings))
    randomise(twin, scale)
    twin.save_pretrained(folder)
    return twin.eval()


def merge_files(run: Path, base: Path, out: Path, **settings: Any) -> MergeAdapterResult:
    given = {"run": run, "out": out, "base": str(base), "device": "cpu"} | settings
    return job.merge(build(MergeAdapterSettings, given))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """A tied base, an adapter that trains its head in full, and the adapted model."""
    root, base = tmp_path_factory.mktemp("llama"), tiny_module()
    base.generation_config = GenerationConfig(eos_token_id=[1, 2], temperature=0.6, do_sample=True)
    twin = adapter(base, root / "adapter", target_modules=["q_proj"], modules_to_save=["lm_head"])
    return saved(base, root / "base"), root / "adapter", twin


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("precision", [None, "fp32", "bf16", "fp16"])
def test_the_number_format_is_the_base_s_own_or_as_asked(
    stored: str, precision: str | None, tmp_path: Path, llama: tuple[Path, Path, Any]
) -> None:
    base = saved(tiny_module().to(getattr(torch, stored)), tmp_path / "base")
    result = merge_files(llama[1], base, tmp_path / "out", precision=precision)
    own = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    assert result.precision == (precision or own[stored])
    state = load_file(tmp_path / "out" / "model.safetensors")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[result.precision]
    assert {value.dtype for value in state.values()} == {dtype}
    assert list(result.differences) == list(dict.fromkeys(["fp32", result.precision]))
    assert result.differences["fp32"] < {"fp32": 1e-5, "bf16": 2e-2, "fp16": 3e-3}[result.precision]
    plain = load_file(base / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"].float()
    lora = load_file(llama[1] / "adapter_model.safetensors")
    path = "base_model.model.model.layers.0.self_attn.q_proj"
    whole = plain + 2.0 * lora[f"{path}.lora_B.weight"] @ lora[f"{path}.lora_A.weight"]
    assert torch.equal(state["model.layers.0.self_attn.q_proj.weight"], whole.to(dtype))  # rounded once


def test_what_fp16_cannot_hold_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny_module()
    base.model.layers[1].mlp.up_proj.weight.data[3, 4] = 1e5
    folder = saved(base, tmp_path / "base")
    adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    words = ["adapters", "merge", str(tmp_path / "adapter"), "--base", str(folder), "--out", str(tmp_path / "out")]
    assert main([*words, "--precision", "fp16"]) == 2
    message = capsys.readouterr().err
    assert "model.layers.1.mlp.up_proj.weight" in message
    assert "--precision bf16 or fp32" in message
    assert not (tmp_path / "out").exists()
    assert main([*words, "--precision", "bf16"]) == 0
    printed = capsys.readouterr().out
    assert "difference in fp32" in printed
    assert "difference in bf16" in printed


def test_a_merge_that_went_wrong_is_found_in_its_files(
    tmp_path: Path, llama: tuple[Path, Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, run, _ = llama
    write = job.write_merged
    change: Any = None

    def damaged(*arguments: Any) -> None:
        write(*arguments)
        path = arguments[3] / "model.safetensors"
        state = load_file(path)
        change(state)
        save_file(state, path, {"format": "pt"})

    monkeypatch.setattr(job, "write_merged", damaged)
    changes = (
        lambda state: state["lm_head.weight"].copy_(state["model.embed_tokens.weight"]),  # as if it were tied
        lambda state: state["model.norm.weight"].mul_(1.01),
        lambda state: state["model.layers.0.self_attn.q_proj.weight"].copy_(torch.zeros(32, 32)),
    )
    for each in changes:
        change = each
        with pytest.raises(VerificationFailed, match="written and read back, is another"):
            merge_files(run, base, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def nan(state: dict[str, torch.Tensor]) -> None:
        state["model.norm.weight"][3] = float("nan")

    change = nan
    (tmp_path / "out").mkdir()
    with pytest.raises(BaseModelError, match=r"model\.norm\.weight holds numbers that are not finite"):
        merge_files(run, base, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_difference_with_nan_is_never_zero() -> None:
    one = torch.ones(3, 4)
    for place in (0, 1):
        pair = [one.clone(), one.clone()]
        pair[place][1, 2] = float("nan")
        assert torch.tensor(relative_difference(*pair)).isnan()
    assert relative_difference(one, one) == 0


def test_what_a_base_has_beside_its_weights_is_kept(tmp_path: Path, llama: tuple[Path, Path, Any]) -> None:
    base, run, twin = llama
    merge_files(run, base, tmp_path / "out")
    kept = GenerationConfig.from_pretrained(tmp_path / "out")
    assert kept.eos_token_id == [1, 2]
    assert kept.temperature == 0.6
    read = load_base(str(tmp_path / "out"), precision="fp32", device="cpu")
    assert read.tokenizer.stop_ids >= {1, 2}
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), logits(twin), atol=1e-4)


@pytest.mark.parametrize("kind", ["gemma3", "llava"])
@pytest.mark.parametrize("names", [["lm_head"], ["embed_tokens", "lm_head"]], ids=["head", "both"])
def test_a_nested_configuration_is_untied_at_every_level(kind: str, names: list[str], tmp_path: Path) -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vision = SiglipVisionConfig(**small, image_size=16, patch_size=8)
    text = tiny_config("gemma3" if kind == "gemma3" else "llama")
    if kind == "gemma3":
        config = Gemma3Config(text_config=text, vision_config=vision, image_token_index=258, mm_tokens_per_image=4)
        base = Gemma3ForConditionalGeneration(config).eval()
    else:
        base = LlavaForConditionalGeneration(
            LlavaConfig(text_config=text, vision_config=vision, image_token_index=258)
        ).eval()
    assert base.config.tie_word_embeddings
    randomise(base.requires_grad_(True), 0.2)
    twin = adapter(base, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=names)
    if kind == "gemma3":
        merge_files(tmp_path / "adapter", saved(base, tmp_path / "base"), tmp_path / "out")
    else:  # which is not of the models that write text by themselves
        load_adapter(base, tmp_path / "adapter")
        merge(base).save_pretrained(tmp_path / "out")
    again = type(base).from_pretrained(tmp_path / "out")
    assert torch.allclose(logits(again), logits(twin), atol=1e-4)
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert not config.tie_word_embeddings
    assert not config.get_text_config().tie_word_embeddings


@pytest.mark.parametrize("old", [True, False], ids=["scaled", "unscaled"])
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q", "lm_head"]},
        {"target_modules": ["q", "embed_tokens"]},
        {"target_modules": ["q"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q"], "modules_to_save": ["shared", "lm_head"]},
        {"target_modules": ["q"]},
    ],
    ids=["lora-head", "lora-embeddings", "save-head", "save-embeddings", "save-both", "plain"],
)
def test_encoder_decoders(settings: dict, old: bool, tmp_path: Path) -> None:
    config = tiny_config("t5")
    if not old:  # as of T5 1.1, whose outputs are not scaled
        config = type(config)(**config.to_dict() | {"tie_word_embeddings": False})
    torch.manual_seed(0)
    base = AutoModelForSeq2SeqLM.from_config(config).eval()
    twin = adapter(base, tmp_path / "adapter", **settings)
    path = tmp_path / "adapter" / "adapter_config.json"  # PEFT itself cannot wrap this model with its task
    path.write_text(json.dumps(json.loads(path.read_text()) | {"task_type": "SEQ_2_SEQ_LM"}))
    result = merge_files(tmp_path / "adapter", saved(base, tmp_path / "base"), tmp_path / "out")
    assert result.differences["fp32"] < 1e-5
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    expected = logits(twin, decoder_input_ids=IDS)
    assert torch.allclose(logits(again, decoder_input_ids=IDS), expected, atol=1e-4 * expected.abs().max())


def test_a_base_whose_files_hold_another_head_than_its_configuration_says(
    tmp_path: Path, llama: tuple[Path, Path, Any]
) -> None:
    """As other programs wrote them, when they merged an adapter of a tied head: transformers uses that head."""
    folder = saved(tiny_module(), tmp_path / "base")
    path = folder / "model.safetensors"
    state = load_file(path)
    embeddings = state["model.embed_tokens.weight"]
    for head, own in ((embeddings + 0.1, True), (embeddings.clone(), False)):
        save_file(state | {"lm_head.weight": head}, path, {"format": "pt"})
        read = load_base(str(folder), precision="fp32", device="cpu")
        theirs = AutoModelForCausalLM.from_pretrained(folder)
        assert torch.equal(read.model.module.get_output_embeddings().weight, theirs.lm_head.weight)
        assert ("an output head of their own" in read.engine) == own
        assert read.model.module.config.tie_word_embeddings != own
    save_file(state | {"lm_head.weight": embeddings + 0.1}, path, {"format": "pt"})
    twin = adapter(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter", target_modules=["q_proj"])
    merge_files(tmp_path / "adapter", folder, tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.allclose(logits(again), logits(twin), atol=1e-4)
    assert not again.config.tie_word_embeddings


def test_merged_in_the_library_and_saved_by_transformers(tmp_path: Path) -> None:
    for number, settings in enumerate(
        (
            {"target_modules": ("lm_head",)},
            {"modules_to_save": ("lm_head",), "target_modules": ("q_proj",)},
            {"modules_to_save": ("embed_tokens", "lm_head"), "target_modules": ("q_proj",)},
            {"trainable_tokens": (5, 9), "target_modules": ("q_proj",)},
            {"trainable_tokens": {"lm_head": (5, 9)}, "target_modules": ("q_proj",)},
            {"trainable_tokens": {"lm_head": (5, 9), "embed_tokens": (7,)}, "target_modules": ("q_proj",)},
            {"trainable_tokens": (5, 9), "target_modules": ("q_proj", "lm_head")},
        )
    ):
        model = tiny_module()
        inject(model, LoraConfig(rank=2, **settings))
        randomise(model)
        expected = logits(model)
        merged = merge(model)
        assert torch.allclose(logits(merged), expected, atol=1e-4)
        merged.save_pretrained(tmp_path / str(number))
        again = AutoModelForCausalLM.from_pretrained(tmp_path / str(number))
        assert torch.allclose(logits(again), expected, atol=1e-4), settings
        assert torch.equal(logits(model), expected)  # the adapted model is as it was
        together = settings.get("trainable_tokens") == (5, 9) and "lm_head" not in settings["target_modules"]
        assert again.config.tie_word_embeddings == (
            together or settings.get("modules_to_save") == ("embed_tokens", "lm_head")
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_adapter_with_numbers_that_are_not_finite_is_refused(
    value: float, tmp_path: Path, llama: tuple[Path, Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    base, run, _ = llama
    state = load_file(run / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text((run / "adapter_config.json").read_text())
    for name in ("base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight", "base_model.model.lm_head.weight"):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            broken = {key: each.to(dtype, copy=True) for key, each in state.items()}
            broken[name].view(-1)[7] = value
            save_file(broken, tmp_path / "adapter_model.safetensors")
            for command in (["generate", str(tmp_path), "a"], ["adapters", "merge", str(tmp_path), "--out", "x"]):
                assert main([*command, "--base", str(base)]) == 2
                assert f"{name} holds numbers that are not finite" in capsys.readouterr().err
    config = json.loads((run / "adapter_config.json").read_text())
    save_file(state, tmp_path / "adapter_model.safetensors")
    for key, wrong in (("lora_alpha", value), ("alpha_pattern", {"q_proj": value})):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | {key: wrong}))
        assert main(["generate", str(tmp_path), "a", "--base", str(base)]) == 2
        assert "adapter_config.json is not a complete LoRA configuration" in capsys.readouterr().err
