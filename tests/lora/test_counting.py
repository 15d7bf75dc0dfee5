"""What an adapter trains, counted on the meta device, against the adapter itself."""

import pytest
import torch
from conftest import tiny_config, tiny_module

from afina.core.task import CAUSAL
from afina.lora import LoraConfig
from afina.lora.counting import trained
from afina.lora.injection import inject
from afina.training.baselines import baseline

CONFIGS = {
    "plain": LoraConfig(),
    "rank_pattern": LoraConfig(rank=4, rank_pattern={"layers.0.*": 8}),
    "attention": LoraConfig(target_modules="attention"),
    "dora": LoraConfig(variant="dora", rank=4),
    "vera": LoraConfig(variant="vera", rank=4),
    "lora_fa": LoraConfig(variant="lora_fa", rank=4),
    "lora_fa, embedding": LoraConfig(variant="lora_fa", rank=4, target_modules=("embed_tokens", "q_proj")),
    "pissa": LoraConfig(init="pissa", rank=4),
    "pissa, embedding": LoraConfig(init="pissa", rank=4, target_modules=("embed_tokens", "q_proj")),
    "lora_fa, olora": LoraConfig(variant="lora_fa", init="olora", rank=4),
    "bias": LoraConfig(bias="all", rank=4),
    "lora_only": LoraConfig(bias="lora_only", rank=4),
    "saved": LoraConfig(modules_to_save=("norm",), rank=4),
    "tokens": LoraConfig(trainable_tokens=(3, 5), rank=4),
    "layers": LoraConfig(layers=(1,), rank=4),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_trained_numbers_are_those_of_the_adapter(name: str) -> None:
    kind = "gpt2" if name in ("bias", "lora_only") else "llama"
    model, config = tiny_module(kind), CONFIGS[name]
    counted = trained(model, config)
    inject(model, config)
    assert counted.numbers == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counted.depth == (0.5 if name == "layers" else 1.0)


@pytest.mark.parametrize(("method", "depth"), [("full", 1.0), ("head", 0.0), ("last", 0.5)])
def test_alternatives_on_the_meta_device(method, depth: float) -> None:
    from afina.models.skeleton import build_skeleton

    model = build_skeleton(tiny_config(), CAUSAL)
    counted = trained(model, baseline(model, method, 1))
    real = tiny_module()
    inject(real, baseline(real, method, 1))
    assert counted.numbers == sum(p.numel() for p in real.parameters() if p.requires_grad)
    assert counted.depth == depth
    assert all(p.is_meta for p in model.parameters())


def test_experts_are_counted() -> None:
    from transformers import AutoModelForCausalLM, MixtralConfig

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            MixtralConfig(
                vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, num_local_experts=4,
            )
        )  # fmt: skip
    attention = 2 * 4 * (32 + 32 + 32 + 16 + 32 + 16 + 32 + 32)
    router = 2 * 4 * (32 + 4)
    experts = 2 * 4 * 4 * ((2 * 48 + 32) + (32 + 48))
    adapter = trained(model, LoraConfig(rank=4)).adapter
    assert adapter in (attention + experts, attention + router + experts)
