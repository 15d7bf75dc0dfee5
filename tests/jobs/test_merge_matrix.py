"""Merged models, read back from their files by transformers, against PEFT's unmerged model in memory.

Every family, tied and untied, in fp32 and bf16, with adapters of the head, of the embeddings, and of both. PEFT's own
merge is no twin: it is wrong for some tied heads.
"""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, tiny_config
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from afina.core.config import build
from afina.jobs.adapters.merge import MergeAdapterSettings, merge
from afina.lora import LoraConfig, inject, save_adapter

FAMILIES = {
    "llama": ("model.embed_tokens", "lm_head", "q_proj"),
    "qwen3": ("model.embed_tokens", "lm_head", "q_proj"),
    "gemma3": ("model.embed_tokens", "lm_head", "q_proj"),
    "gpt2": ("transformer.wte", "lm_head", "c_attn"),
    "bert": ("bert.embeddings.word_embeddings", "cls.predictions.decoder", "query"),
}
# What is adapted, and what is trained in full: {e} the embeddings, {h} the head, {l} a layer.
ADAPTERS = {
    "plain": (("{l}",), ()),
    "lora-head": (("{l}", "{h}"), ()),
    "lora-embeddings": (("{l}", "{e}"), ()),
    "lora-both": (("{l}", "{h}", "{e}"), ()),
    "save-head": (("{l}",), ("{h}",)),
    "save-embeddings": (("{l}",), ("{e}",)),
    "save-both": (("{l}",), ("{e}", "{h}")),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROUNDING = {"fp32": 1e-5, "bf16": 2e-2}  # of the largest logit, the arithmetic being that of fp32
IDS = torch.randint(3, 259, (2, 24), generator=torch.Generator().manual_seed(1))


@cache
def base(family: str, tied: bool, dtype: str) -> Any:
    config = tiny_config(family)
    config.tie_word_embeddings = tied
    if family == "bert":
        config.is_decoder = True
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():  # large enough that each adapter matters
        if parameter.dim() > 1:
            parameter.data = torch.randn(parameter.shape) * 0.15
    return model.to(DTYPES[dtype])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where the base is saved."""
    root = tmp_path_factory.mktemp("bases")

    @cache
    def folder(family: str, tied: bool, dtype: str) -> Path:
        found: Path = root / f"{family}-{tied}-{dtype}"
        base(family, tied, dtype).save_pretrained(found)
        byte_tokenizer().save_pretrained(found)
        return found

    return folder


@pytest.fixture(autouse=True)
def _without_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT's model cards take as long as all the rest."""
    monkeypatch.setattr(PeftModel, "create_or_update_model_card", lambda self, folder: None)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


def randomise(model: Any) -> None:
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = 0.5 * parameter.data + (0.1 * noise).to(parameter.dtype)


@pytest.mark.parametrize(
    ("tied", "dtype", "maker"),
    [(True, "fp32", "peft"), (True, "bf16", "peft"), (False, "fp32", "peft"), (False, "bf16", "peft"),
     (True, "fp32", "afina")],
)  # fmt: skip
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_files_are_the_adapted_model(
    family: str, tied: bool, adapter: str, dtype: str, maker: str, folders: Any, tmp_path: Path
) -> None:
    embeddings, head, layer = FAMILIES[family]
    targets, saved = ([name.format(e=embeddings, h=head, l=layer) for name in names] for names in ADAPTERS[adapter])
    model, folder = copy.deepcopy(base(family, tied, dtype)), folders(family, tied, dtype)
    if maker == "peft":
        config = PeftConfig(r=4, lora_alpha=8, target_modules=targets, modules_to_save=saved or None)
        twin = get_peft_model(model, config)
        randomise(twin)
        twin.save_pretrained(tmp_path / "adapter")
    else:
        ours = copy.deepcopy(model)
        own = LoraConfig(rank=4, alpha=8.0, target_modules=tuple(targets), modules_to_save=tuple(saved))
        inject(ours, own)
        randomise(ours)
        save_adapter(ours, own, tmp_path / "adapter", str(folder))
        twin = PeftModel.from_pretrained(model, tmp_path / "adapter")
    settings = {"run": tmp_path / "adapter", "out": tmp_path / "merged", "base": str(folder), "device": "cpu"}
    result = merge(build(MergeAdapterSettings, settings))
    assert result.precision == dtype
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert again.dtype == DTYPES[dtype]
    expected, plain = logits(twin.float().eval()), logits(copy.deepcopy(base(family, tied, dtype)).float())
    difference = ((logits(again.float()) - expected).abs().max() / expected.abs().max()).item()
    assert difference <= ROUNDING[dtype]
    assert (expected - plain).abs().max() / expected.abs().max() > 3 * ROUNDING[dtype]
    assert result.differences["fp32"] <= ROUNDING[dtype]
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    if (adapter, maker) != ("save-both", "afina"):  # which trains the two as one, where they are
        assert config.get("tie_word_embeddings", True) == (tied and adapter == "plain")
