"""Adapters of experts' tensors against PEFT's `target_parameters`."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GptOssConfig, MixtralConfig

from afina.core.errors import AdapterError
from afina.lora import LoraConfig, combine, disabled, find_targets, inject, load_adapter, merge, save_adapter
from afina.training.optimizer import Optimizer

SIZES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4,
}  # fmt: skip
IDS = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))


def moe(kind: str):
    """Mixtral holds (experts, out, in), GPT-OSS (experts, in, out)."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config((MixtralConfig if kind == "mixtral" else GptOssConfig)(**SIZES)).eval()


def stir(model) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if "lora_" in name:
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))


@pytest.mark.filterwarnings("ignore:The following rank_pattern")  # PEFT looks for it among layers only, and applies it
@pytest.mark.parametrize("kind", ["mixtral", "gpt-oss"])
def test_experts_are_adapted_as_in_peft_both_ways(kind: str, tmp_path: Path) -> None:
    import peft

    config = LoraConfig(rank=3, alpha=6.0, rank_pattern={"down_proj": 2})
    ours = moe(kind)
    with torch.no_grad():
        before = ours(IDS).logits
    paths = inject(ours, config)
    assert f"model.layers.1.mlp.experts.{'gate_up_proj'}" in paths
    assert "model.layers.0.self_attn.q_proj" in paths
    with torch.no_grad():
        assert torch.equal(ours(IDS).logits, before)
    stir(ours)
    save_adapter(ours, config, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(moe(kind), tmp_path / "ours", is_trainable=True)
    out, expected = ours(IDS).logits, theirs(IDS).logits
    assert torch.allclose(out, expected, atol=1e-5)
    assert (out - before).abs().max() > 0.01
    out.square().mean().backward()
    expected.square().mean().backward()
    grads = {n: p.grad for n, p in ours.named_parameters() if p.grad is not None}
    their = [p.grad for p in theirs.parameters() if p.grad is not None]
    assert len(grads) == len(their)
    for a, b in zip(
        sorted(grads.values(), key=lambda g: float(g.norm())), sorted(their, key=lambda g: float(g.norm())), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-6)
    theirs.save_pretrained(tmp_path / "theirs")
    again = moe(kind)
    load_adapter(again, tmp_path / "theirs")
    merged = merge(again)
    with torch.no_grad():
        assert torch.allclose(again(IDS).logits, out, atol=1e-6)
        assert torch.allclose(merged(IDS).logits, out, atol=1e-5)
        with disabled(again):
            assert torch.equal(again(IDS).logits, before)


def test_the_optimiser_treats_experts_as_other_adapters() -> None:
    model = moe("mixtral")
    inject(model, LoraConfig(rank=2, target_modules="mlp"))
    stir(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer = Optimizer(model, weight_decay=0.5, lora_plus=4.0)
    for name, p in model.named_parameters():
        p.grad = torch.full_like(p, 0.0 if "lora_a" in name else 1.0) if p.requires_grad else None
    optimizer.step(0.01, 1.0)
    assert any("lora_bs" in name for name in before)
    for name, p in model.named_parameters():
        if name in before:  # no decay; a first step of Adam is as long as the rate, four times that for every B
            expected = before[name] - (0.04 if "lora_b" in name else 0.0)
            assert torch.allclose(p, expected, atol=1e-4), name


def test_what_experts_do_not_have_is_said(tmp_path: Path) -> None:
    model = moe("mixtral")
    assert not any("experts" in path for path in find_targets(model, LoraConfig(target_modules="attention")))
    assert all("experts" in path for path in find_targets(model, LoraConfig(target_modules="mlp")))
    for settings in ({"variant": "dora"}, {"init": "pissa"}, {"dropout": 0.1}):
        with pytest.raises(AdapterError, match="experts"):
            inject(model, LoraConfig(rank=2, **settings))
    config = LoraConfig(rank=2, target_modules=("experts.down_proj",))
    inject(model, config)
    save_adapter(model, config, tmp_path / "a")
    with pytest.raises(AdapterError, match="adapts experts"):
        combine([tmp_path / "a", tmp_path / "a"], [1.0, 1.0], tmp_path / "sum")
