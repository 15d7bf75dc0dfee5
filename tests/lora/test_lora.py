"""Injection, gradients, files: what each setting changes, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_module
from safetensors.torch import load_file, save_file
from torch import nn

from afina.core.errors import AdapterError, OutputError
from afina.lora import LoraConfig, find_targets, inject, load_adapter, lora_layers, save_adapter


def test_forward_and_gradients_match_the_formula() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5))
    inject(model, LoraConfig(rank=2, alpha=3, target_modules=("0",)))
    layer = model[0]
    layer.lora_b.data.normal_()
    x = torch.randn(4, 6)
    y = model(x)
    w, bias, a, b = layer.base.weight, layer.base.bias, layer.lora_a, layer.lora_b
    assert torch.allclose(y, x @ w.T + bias + 1.5 * (x @ a.T) @ b.T, atol=1e-6)
    g = torch.randn_like(y)
    y.backward(g)
    assert torch.allclose(b.grad, 1.5 * g.T @ (x @ a.T), atol=1e-5)
    assert torch.allclose(a.grad, 1.5 * (g @ b).T @ x, atol=1e-5)
    assert w.grad is None
    assert bias.grad is None


def test_adapters_are_fp32_on_a_bf16_base() -> None:
    model = tiny_module().to(torch.bfloat16)
    inject(model, LoraConfig())
    layer = next(lora_layers(model))[1]
    assert layer.lora_a.dtype == layer.lora_b.dtype == torch.float32
    assert model(torch.tensor([[5, 6]])).logits.dtype == torch.bfloat16


def test_only_the_adapter_requires_gradients() -> None:
    model = tiny_module()
    inject(model, LoraConfig())
    assert all(p.requires_grad == ("lora_" in name) for name, p in model.named_parameters())


def test_rank_alpha_dropout_and_seed() -> None:
    def injected(seed: int = 0, **settings) -> nn.Module:
        model = tiny_module()
        inject(model, LoraConfig(**settings), seed)
        return next(lora_layers(model))[1]

    assert injected(rank=3).lora_a.shape[0] == 3
    assert injected(rank=4, alpha=10).scaling == 2.5
    assert torch.equal(injected().lora_a, injected().lora_a)
    assert not torch.equal(injected().lora_a, injected(seed=1).lora_a)
    layer = injected(dropout=0.5)
    layer.lora_b.data.normal_()
    x = torch.randn(3, 32)
    assert torch.equal(layer(x), layer(x))  # evaluation mode
    layer.train()
    assert not torch.equal(layer(x), layer(x))


def test_targets_excludes_and_patterns() -> None:
    model = tiny_module()
    assert find_targets(model, LoraConfig(target_modules="q_proj,v_proj")) == [
        f"model.layers.{i}.self_attn.{n}" for i in (0, 1) for n in ("q_proj", "v_proj")
    ]
    assert find_targets(model, LoraConfig(target_modules="re:.*1.*o_proj")) == ["model.layers.1.self_attn.o_proj"]
    everything = find_targets(model, LoraConfig())
    assert len(everything) == 14
    assert "lm_head" not in everything
    assert len(find_targets(model, LoraConfig(exclude_modules="down_proj"))) == 12
    config = LoraConfig(rank=4, rank_pattern={"q_proj": 2}, alpha_pattern={"layers.0.*": 1.0})
    inject(model, config)
    layers = dict(lora_layers(model))
    assert layers["model.layers.0.self_attn.q_proj"].rank == 2
    assert layers["model.layers.0.self_attn.k_proj"].scaling == 0.25
    assert layers["model.layers.1.self_attn.k_proj"].scaling == 8.0


def test_a_target_that_matches_nothing_names_near_ones() -> None:
    with pytest.raises(AdapterError, match=r"(?s)'q_prj' matches no layer.*'q_proj'"):
        inject(tiny_module(), LoraConfig(target_modules="q_prj"))
    with pytest.raises(AdapterError, match="LlamaRMSNorm layers, which cannot be adapted"):
        inject(tiny_module(), LoraConfig(target_modules="norm"))
    model = tiny_module()
    inject(model, LoraConfig())
    with pytest.raises(AdapterError, match="already has an adapter"):
        inject(model, LoraConfig())


def saved(folder: Path) -> Path:
    model = tiny_module()
    inject(model, LoraConfig(rank=2))
    save_adapter(model, LoraConfig(rank=2), folder, "tiny")
    return folder


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_peft_may_ask_for_and_we_lack_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    for key, value in {
        "use_qalora": True,
        "lora_bias": True,
        "init_lora_weights": "pissa_niter_4",
        "peft_type": "IA3",
    }.items():
        before = json.loads((folder / "adapter_config.json").read_text())
        change(folder / "adapter_config.json", **{key: value})
        with pytest.raises(AdapterError, match=key):
            load_adapter(tiny_module(), folder)
        (folder / "adapter_config.json").write_text(json.dumps(before))
    load_adapter(tiny_module(), folder)


def test_weights_must_be_complete_and_fit(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    path = folder / "adapter_model.safetensors"
    state = load_file(path)
    first = next(iter(state))
    save_file({k: v for k, v in state.items() if k != first}, path)
    with pytest.raises(AdapterError, match="is missing"):
        load_adapter(tiny_module(), folder)
    save_file(state | {"base_model.model.other.lora_A.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(AdapterError, match="belongs to no layer"):
        load_adapter(tiny_module(), folder)
    save_file(state | {first: torch.zeros(2, 7)}, path)
    with pytest.raises(AdapterError, match="shape"):
        load_adapter(tiny_module(), folder)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(AdapterError, match="damaged"):
        load_adapter(tiny_module(), folder)


def test_broken_weights_are_not_saved(tmp_path: Path) -> None:
    model = tiny_module()
    inject(model, LoraConfig())
    next(lora_layers(model))[1].lora_a.data[0, 0] = float("nan")
    with pytest.raises(AdapterError, match="not finite"):
        save_adapter(model, LoraConfig(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model = tiny_module()
    inject(model, LoraConfig())
    with pytest.raises(OutputError):
        save_adapter(model, LoraConfig(), tmp_path / "file" / "adapter")
