"""Adapters cross to PEFT and back; logits agree to 1e-5 in fp32. Merged equals adapted to 1e-4."""

import copy
from pathlib import Path

import pytest
import torch
from conftest import tiny_module
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model

from afina.engine.ops import Segments
from afina.lora import LoraConfig, disabled, inject, load_adapter, lora_layers, merge, save_adapter
from afina.models.causal import DecoderModel
from afina.models.model import unshared
from afina.models.through_transformers import as_transformers

KINDS = ["llama", "qwen3", "gpt2", "bert"]
IDS = torch.randint(3, 259, (2, 11), generator=torch.Generator().manual_seed(1))


def output(model) -> torch.Tensor:
    """In fp64: the tiny Llama makes the rounding of fp32 a thousand times larger, otherwise on each processor."""
    with torch.no_grad():
        result = copy.deepcopy(model).double()(IDS)
    return result.logits if hasattr(result, "logits") else result.last_hidden_state


def randomise(model) -> None:
    """B starts at zero; other values show whether every weight is used and in its place."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)


CONFIGS = {
    "all-linear": LoraConfig(rank=4, alpha=12),
    "patterns": LoraConfig(rank=4, rank_pattern={r"\w+\.0\..*": 2}, alpha_pattern={r"\w+\.1\..*": 5.0}),
}
EMBEDDINGS = {"llama": "embed_tokens", "qwen3": "embed_tokens", "gpt2": "wte", "bert": "word_embeddings"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_ours_in_peft(kind: str, name: str, tmp_path: Path) -> None:
    model = tiny_module(kind)
    base = copy.deepcopy(model)
    inject(model, CONFIGS[name])
    randomise(model)
    save_adapter(model, CONFIGS[name], tmp_path, "tiny")
    theirs = PeftModel.from_pretrained(base, tmp_path)
    assert torch.allclose(output(theirs), output(model), atol=1e-5)
    with disabled(model):
        assert not torch.allclose(output(theirs), output(model), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_theirs_in_ours(kind: str, tmp_path: Path) -> None:
    model = tiny_module(kind)
    base = copy.deepcopy(model)
    config = PeftConfig(r=5, lora_alpha=7, target_modules="all-linear", rank_pattern={r"\w+\.1\..*": 3})
    theirs = get_peft_model(base, config)
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    load_adapter(model, tmp_path)
    assert torch.allclose(output(theirs), output(model), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_embedding_both_ways(kind: str, tmp_path: Path) -> None:
    config = LoraConfig(rank=3, target_modules=(EMBEDDINGS[kind],))
    ours, base = tiny_module(kind), tiny_module(kind)
    inject(ours, config)
    randomise(ours)
    save_adapter(ours, config, tmp_path / "ours")
    theirs = PeftModel.from_pretrained(base, tmp_path / "ours")
    assert torch.allclose(output(theirs), output(ours), atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    again = tiny_module(kind)
    load_adapter(again, tmp_path / "theirs")
    assert torch.equal(output(again), output(ours))


@pytest.mark.parametrize("kind", KINDS)
def test_all_linear_is_what_peft_takes(kind: str) -> None:
    model = tiny_module(kind)
    theirs = get_peft_model(copy.deepcopy(model), PeftConfig(target_modules="all-linear"))
    paths = {
        n.removeprefix("base_model.model.").removesuffix(".lora_A.default")
        for n, m in theirs.named_modules()
        if n.endswith("lora_A.default")
    }
    assert set(inject(model, LoraConfig())) == paths


@pytest.mark.parametrize("kind", KINDS)
def test_merged_equals_adapted(kind: str, tmp_path: Path) -> None:
    model = tiny_module(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inject(model, LoraConfig(rank=4))
    randomise(model)
    merged = merge(model)
    assert not list(lora_layers(merged))
    assert torch.allclose(output(merged), output(model), atol=1e-4)
    with disabled(model):  # the adapted model itself was left alone
        own = {name.replace(".base.", "."): value for name, value in model.state_dict().items() if "lora_" not in name}
    assert all(torch.equal(own[name], value) for name, value in before.items())


def test_merge_unties_embeddings(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny_module("llama")
    inject(model, LoraConfig(target_modules=("embed_tokens",)))
    randomise(model)
    merged = merge(model)
    assert torch.allclose(output(merged), output(model), atol=1e-4)
    merged.save_pretrained(tmp_path)
    assert torch.allclose(output(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), output(model), atol=1e-4)


def test_starter_both_ways(starter, tmp_path: Path) -> None:
    model = copy.deepcopy(starter.model.module)
    inject(model, LoraConfig(rank=4))
    generator = torch.Generator().manual_seed(3)
    for _, layer in lora_layers(model):  # small, as training leaves them: the logits stay of their usual size
        layer.lora_b.data = 0.01 * torch.randn(layer.lora_b.shape, generator=generator)
    save_adapter(model, LoraConfig(rank=4), tmp_path / "ours")
    theirs = PeftModel.from_pretrained(as_transformers(starter.model.module), tmp_path / "ours")
    ids = torch.tensor(starter.tokenizer.encode("The capital of Portugal is"))
    packed = unshared(ids, ids, Segments((0, len(ids))))
    with torch.no_grad():
        ours, peft = DecoderModel(model).label_logits(packed), theirs(ids[None]).logits[0]
        scale = ours.abs().max()
        assert (ours - peft).abs().max() <= 1e-5 * scale
        assert (DecoderModel(merge(model)).label_logits(packed) - ours).abs().max() <= 1e-4 * scale
    theirs.save_pretrained(tmp_path / "theirs")
    again = copy.deepcopy(starter.model.module)
    load_adapter(again, tmp_path / "theirs")
    with torch.no_grad():
        assert (DecoderModel(again).label_logits(packed) - peft).abs().max() <= 1e-5 * scale
