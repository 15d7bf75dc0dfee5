"""Each variant and init against PEFT where it has the same, else its formula: output, gradients, files, merging."""

import copy
from pathlib import Path

import pytest
import torch
from conftest import tiny_module
from peft import LoraConfig as PeftConfig
from peft import PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from afina.core.config import build
from afina.core.errors import AdapterError, SettingsError
from afina.lora import (
    LoraConfig,
    disabled,
    inject,
    load_adapter,
    lora_layers,
    merge,
    save_adapter,
    trainable_parameters,
)
from afina.lora.inits.eva import redistribute
from afina.lora.variants.lora import LoraLinear

IDS = torch.randint(3, 259, (2, 11), generator=torch.Generator().manual_seed(1))
EXTRAS = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"variant": "dora"},
    "vera": {"variant": "vera"},
    "lora_fa": {"variant": "lora_fa"},
    "gaussian": {"init": "gaussian"},
    "orthogonal": {"init": "orthogonal"},
    "pissa": {"init": "pissa"},
    "pissa, rslora": {"init": "pissa", "rslora": True},
    "olora": {"init": "olora"},
    "eva": {"init": "eva"},
    "eva, ranks redistributed": {"init": "eva", "eva_rho": 2.0},
    "lora_ga": {"init": "lora_ga"},
    "layers": {"layers": (1,)},
    "attention": {"target_modules": "attention"},
    "mlp": {"target_modules": "mlp"},
    "biases": {"bias": "all"},
    "own biases": {"bias": "lora_only"},
    "modules in full": {"modules_to_save": ("norm", "ln_f")},
    "tokens": {"trainable_tokens": (5, 7, 200)},
}


KINDS = ["llama", "qwen3", "gemma3", "gpt2", "bert", "t5"]
NORMS = {"gpt2": "ln_f", "bert": "pooler", "t5": "final_layer_norm"}
ATTENTION = {"gpt2": "c_attn", "bert": "query", "t5": "q"}
WITH_BIASES = ("gpt2", "bert")


def output(model) -> torch.Tensor:
    if getattr(model.config, "is_encoder_decoder", False):
        return model(input_ids=IDS, decoder_input_ids=IDS).logits
    result = model(IDS)
    return (
        result.logits
        if hasattr(result, "logits")
        else torch.cat([result.last_hidden_state, result.pooler_output[:, None]], 1)
    )


def loss(model, labels: torch.Tensor = IDS) -> torch.Tensor:
    logits = output(model)
    labels = labels if logits.shape[1] == labels.shape[1] else F.pad(labels, (0, 1), value=3)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten() % logits.shape[-1])


def injected(kind: str, seed: int = 0, **settings) -> tuple[nn.Module, LoraConfig]:
    model = tiny_module(kind)
    if settings.get("modules_to_save"):
        settings["modules_to_save"] = (NORMS.get(kind, "norm"),)
    config = LoraConfig(rank=4, alpha=12, **settings)

    def calibrate() -> None:
        value = loss(model)
        if config.init == "lora_ga":
            value.backward()

    inject(model, config, seed, calibrate)
    return model, config


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def train(model: nn.Module, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW(trained(model).values(), lr=0.02, weight_decay=0.0)
    for _ in range(steps):
        loss(model, IDS.roll(1)).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", EXTRAS)
def test_begins_as_the_base_trains_saves_and_merges(kind: str, name: str, tmp_path: Path) -> None:
    base = tiny_module(kind)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    if kind not in WITH_BIASES and "biases" in name:
        with_bias = copy.deepcopy(base)
        inject(with_bias, LoraConfig(bias="all" if name == "biases" else "lora_only"))
        assert trained(with_bias).keys() == {n for n in trained(with_bias) if "lora_" in n}
        return
    model, config = injected(kind, **EXTRAS[name])
    with torch.no_grad():
        plain = output(base)
        near = 2e-5 * max(1.0, plain.abs().max().item())
        assert torch.allclose(output(model), plain, atol=near)
        train_frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    train(model, 30 if name == "vera" else 3)
    with torch.no_grad():
        adapted = output(model)
        assert (adapted - plain).abs().max() > 1e-2
        assert all(torch.equal(p, train_frozen[n]) for n, p in model.named_parameters() if n in train_frozen)
        with disabled(model):
            assert torch.equal(output(model), plain)
        assert torch.allclose(output(merge(model)), adapted, atol=5 * near)
        assert torch.equal(output(model), adapted)
        save_adapter(model, config, tmp_path)
        again = tiny_module(kind)
        load_adapter(again, tmp_path)
        assert torch.allclose(output(again), adapted, atol=near)
        with disabled(again):
            own = {key.replace(".base.", "."): value for key, value in again.state_dict().items()}
            assert all(torch.equal(own[key], value) for key, value in before.items())
        theirs = PeftModel.from_pretrained(tiny_module(kind), tmp_path)
        assert torch.allclose(output(theirs), adapted, atol=near)


PEFT = {
    "lora": PeftConfig(),
    "rslora": PeftConfig(use_rslora=True),
    "dora": PeftConfig(use_dora=True),
    "vera": VeraConfig(target_modules=["q_proj"]),
    "biases": PeftConfig(bias="all"),
    "modules in full": PeftConfig(modules_to_save=["norm"]),
    "tokens": PeftConfig(trainable_token_indices=[5, 9]),
    "layers": PeftConfig(target_modules=["q_proj"], layers_to_transform=[1]),
}


def peft_config(name: str, kind: str):
    config = copy.deepcopy(PEFT[name])
    config.r = 4
    if name != "vera":
        config.lora_alpha = 12
    names = config.target_modules or "all-linear"
    config.target_modules = names if isinstance(names, str) else [ATTENTION.get(kind, "q_proj")]
    config.modules_to_save = config.modules_to_save and [NORMS.get(kind, "norm")]
    return config


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PEFT)
def test_peft_s_adapters_have_the_same_gradients(kind: str, name: str, tmp_path: Path) -> None:
    theirs = get_peft_model(tiny_module(kind), peft_config(name, kind))
    train(theirs)
    theirs.save_pretrained(tmp_path)
    model = tiny_module(kind)
    load_adapter(model, tmp_path)
    near = 2e-5 * max(1.0, output(model).abs().max().item())
    assert torch.allclose(output(model), output(theirs), atol=near)
    gradients = []
    for each in (model, theirs):
        loss(each).backward()
        gradients.append(sorted(p.grad.norm().item() for p in trained(each).values() if p.grad is not None))
    assert len(gradients[0]) == len(gradients[1])
    assert torch.allclose(torch.tensor(gradients[0]), torch.tensor(gradients[1]), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_inits_from_the_base_are_peft_s(name: str) -> None:
    theirs = get_peft_model(
        tiny_module(), PeftConfig(r=4, lora_alpha=12, target_modules="all-linear", init_lora_weights=name)
    )
    model, _ = injected("llama", init=name)
    layers = dict(lora_layers(model))
    for path, module in theirs.get_base_model().named_modules():
        if hasattr(module, "lora_A"):
            theirs_ba = module.lora_B["default"].weight @ module.lora_A["default"].weight
            ours = layers[path]
            assert torch.allclose(ours.lora_b[:, :4] @ ours.lora_a[:4], theirs_ba, atol=1e-5)


def test_loftq_makes_up_for_what_quantisation_lost() -> None:
    torch.manual_seed(0)
    exact = nn.Sequential(nn.Linear(24, 20))
    coarse = copy.deepcopy(exact)
    coarse[0].weight.data = (exact[0].weight.data * 8).round() / 8
    rest = exact[0].weight.data - coarse[0].weight.data
    x = torch.randn(30, 24)
    before = (coarse(x) - exact(x)).norm()
    with pytest.raises(AdapterError, match="loftq"):
        inject(coarse, LoraConfig(rank=6, init="loftq", target_modules=("0",)))
    coarse = nn.Sequential(coarse[0].base if hasattr(coarse[0], "base") else coarse[0])
    inject(coarse, LoraConfig(rank=6, init="loftq", target_modules=("0",)), originals=lambda path: exact[0].weight.data)
    u, s, vt = torch.linalg.svd(rest)
    assert torch.allclose(coarse[0].delta(), u[:, :6] * s[:6] @ vt[:6], atol=1e-5)
    assert (coarse(x) - exact(x)).norm() < 0.8 * before


def test_eva_takes_the_directions_of_the_inputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8))
    batches = [torch.randn(9, 12) @ torch.diag(torch.arange(12.0)) for _ in range(4)]
    inject(model, LoraConfig(rank=3, init="eva", target_modules=("0",)), calibrate=lambda: [model(x) for x in batches])
    _, _, vt = torch.linalg.svd(torch.cat(batches), full_matrices=False)
    assert (
        model[0].lora_a @ vt[:3].T
    ).abs().diagonal().min() > 0.9  # rows up to their sign, from an incremental decomposition
    assert model[0].lora_b.abs().max() == 0
    with pytest.raises(AdapterError, match="looks at data"):
        inject(nn.Sequential(nn.Linear(4, 4)), LoraConfig(rank=2, init="eva", target_modules=("0",)))
    shares = {"a": torch.tensor([0.9, 0.5, 0.4]), "b": torch.tensor([0.3, 0.2, 0.1])}
    assert redistribute(shares, 4) == {"a": 3, "b": 1}


def test_lora_ga_takes_the_first_step_of_full_fine_tuning() -> None:
    """Its A and B span singular directions of dL/dW: the closed form, and s·BA is not in the product at the start."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8))
    x, y = torch.randn(20, 12), torch.randn(20, 8)
    weight = model[0].weight.detach().clone().requires_grad_(True)
    F.mse_loss(x @ weight.T + model[0].bias, y).backward()
    inject(
        model,
        LoraConfig(rank=3, init="lora_ga", target_modules=("0",)),
        calibrate=lambda: F.mse_loss(model(x), y).backward(),
    )
    layer = model[0]
    assert torch.allclose(layer(x), layer.base(x), atol=1e-6)
    u, _, vt = torch.linalg.svd(weight.grad)
    c = 8**0.25 / 4
    assert torch.allclose((layer.lora_a[:3] @ vt[:3].T).abs(), c * torch.eye(3), atol=1e-4)
    assert torch.allclose((layer.lora_b[:, :3].T @ u[:, 3:6]).abs(), c * torch.eye(3), atol=1e-4)
    assert layer.base.weight.grad is None
    assert not layer.base.weight.requires_grad


def test_orthogonal_begins_at_zero_though_neither_factor_is() -> None:
    model, _ = injected("llama", init="orthogonal")
    layer = next(lora_layers(model))[1]
    assert layer.lora_a.abs().max() > 0.01
    assert layer.lora_b.abs().max() > 0.01
    assert layer.delta().abs().max() < 1e-6


def test_what_is_trained() -> None:
    def names(**settings) -> set[str]:
        return {name.rsplit(".", 1)[-1] for name in trained(injected("gpt2", **settings)[0])}

    assert names(variant="lora_fa") == {"lora_b"}
    assert names(variant="vera") == {"vera_lambda_b", "vera_lambda_d"}
    assert names(variant="dora") == {"lora_a", "lora_b", "lora_magnitude"}
    assert names(bias="all") == {"lora_a", "lora_b", "bias"}
    assert names(trainable_tokens=(3,)) == {"lora_a", "lora_b", "rows"}
    plain, pissa = (trainable_parameters(injected("llama", init=name)[0]) for name in ("kaiming", "pissa"))
    assert plain == pissa == sum(p.numel() for p in trained(injected("llama")[0]).values())
    attention, mlp = (injected("llama", target_modules=name)[0] for name in ("attention", "mlp"))
    assert {p.split(".")[3] for p, _ in lora_layers(attention)} == {"self_attn"}
    assert {p.split(".")[3] for p, _ in lora_layers(mlp)} == {"mlp"}
    assert {p.split(".")[2] for p, _ in lora_layers(injected("llama", layers=(1,))[0])} == {"1"}


def test_an_embedding_beside_an_init_from_the_base_is_saved_with_its_own_rank(tmp_path: Path) -> None:
    model, config = injected("llama", init="pissa", target_modules=("embed_tokens", "q_proj"))
    train(model)
    save_adapter(model, config, tmp_path)
    again = tiny_module("llama")
    load_adapter(again, tmp_path)
    with torch.no_grad():
        adapted = output(model)
        near = 2e-5 * max(1.0, adapted.abs().max().item())
        assert torch.allclose(output(again), adapted, atol=near)
        assert torch.allclose(output(PeftModel.from_pretrained(tiny_module("llama"), tmp_path)), adapted, atol=near)


def test_the_frozen_ranks_of_an_init_stay(tmp_path: Path) -> None:
    model, config = injected("llama", init="pissa")
    layer = next(layer for _, layer in lora_layers(model) if isinstance(layer, LoraLinear))
    a, b = layer.lora_a.detach().clone(), layer.lora_b.detach().clone()
    train(model)
    assert torch.equal(layer.lora_a[4:], a[4:])
    assert torch.equal(layer.lora_b[:, 4:], b[:, 4:])
    assert not torch.equal(layer.lora_a[:4], a[:4])
    save_adapter(model, config, tmp_path)
    assert all(8 in value.shape for name, value in load_file(tmp_path / "adapter_model.safetensors").items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init": "pissa", "variant": "dora"}, "dora"),
        ({"init": "eva", "variant": "vera"}, "vera"),
        ({"init": "orthogonal", "rank": 5}, "even ranks"),
        ({"eva_rho": 2}, "eva_rho"),
        ({"layers": "0-x"}, "0-x"),
        ({"layers": "3-1"}, "backwards"),
        ({"variant": "lorra"}, "variant"),
    ],
)
def test_settings_that_do_not_fit_together(settings: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        build(LoraConfig, settings)


def test_ranges_of_layers() -> None:
    assert LoraConfig(layers="0-2,5").layers == (0, 1, 2, 5)
    with pytest.raises(AdapterError, match="modules_to_save 'nrm' matches no module"):
        inject(tiny_module(), LoraConfig(modules_to_save=("nrm",)))
    with pytest.raises(AdapterError, match="there is no layer 2"):
        inject(tiny_module(), LoraConfig(layers="1-2"))
    with pytest.raises(AdapterError, match="exclude each other"):
        inject(tiny_module(), LoraConfig(trainable_tokens=(3,), modules_to_save=("embed_tokens",)))
    with pytest.raises(AdapterError, match="numbers from 0 to 258"):
        inject(tiny_module(), LoraConfig(trainable_tokens=(259,)))


def test_lora_ga_needs_twice_the_rank() -> None:
    model = tiny_module("llama")  # keys and values have 16 outputs
    with pytest.raises(AdapterError, match="rank 9 is more than the layer"):
        inject(model, LoraConfig(rank=9, init="lora_ga"), 0, lambda: loss(model).backward())


def test_torch_own_attention_is_left_alone() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2), "after": nn.Linear(16, 16)})
    assert inject(model, LoraConfig(rank=2)) == ["after"]
    model["attention"](*[torch.randn(3, 1, 16)] * 3)
    with pytest.raises(AdapterError, match="past an adapter"):
        inject(nn.TransformerEncoderLayer(16, 2, 32), LoraConfig(rank=2))
    with pytest.raises(AdapterError, match="names its embedding"):
        inject(nn.Sequential(nn.Linear(4, 4)), LoraConfig(rank=2, trainable_tokens=(1,)))
