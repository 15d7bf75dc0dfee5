"""A variant from outside the package, (IA)³ (Liu et al. 2022, https://arxiv.org/abs/2205.05638), used as any other.

Nothing in the package knows it: what its one object says must be enough for the command line, training, files, merging,
counting and the report. PEFT has the method, so the files can be compared with PEFT's reading of them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import generate, tiny_module
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

import afina
from afina.core.config import build, read_yaml
from afina.core.errors import AdapterError, SettingsError
from afina.core.files import read_json
from afina.lora import LoraConfig, combine, disabled, inject, load_adapter, merge, save_adapter, trainable_parameters
from afina.lora.counting import trained
from afina.lora.layer import LoraLayer, ParameterCount, Target
from afina.lora.variants import VARIANTS, Variant
from afina.search.study import choices, configured, defaults
from afina.training.optimizer import Optimizer
from afina.ui.cli import main

IDS = torch.randint(3, 259, (2, 11), generator=torch.Generator().manual_seed(1))


class Ia3Linear(LoraLayer):
    """y = l ∘ (W x + bias), l (out, 1) trained."""

    def __init__(self, target: Target, generator: torch.Generator) -> None:
        super().__init__(target, generator)
        self.ia3_l = nn.Parameter(torch.ones(target.size.outputs, 1, device=target.module.weight.device))

    @classmethod
    def parameter_count(cls, target: Target) -> ParameterCount:
        return ParameterCount(target.size.outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return y * self.ia3_l[:, 0].to(y.dtype) if self.enabled else y

    def tensors(self) -> dict[str, Tensor]:
        return {"ia3_l": self.ia3_l}

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        weight = {"weight": self.base.weight.float() * self.ia3_l}
        return weight if self.base.bias is None else weight | {"bias": self.base.bias.float() * self.ia3_l[:, 0]}


class Ia3(Variant):
    name = "ia3"
    layers = (Ia3Linear,)
    peft_type = "IA3"
    tuned = True

    def refuses(self, config: LoraConfig) -> Iterator[str]:
        if config.dropout:
            yield "ia3 has no dropout"

    def from_peft(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def to_peft(self, config: LoraConfig, common: dict[str, Any]) -> dict[str, Any]:
        known = {key: common[key] for key in common if key not in ("r", "bias", "layers_to_transform")}
        return known | {"peft_type": "IA3", "feedforward_modules": []}


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with VARIANTS.added(Ia3()):
        yield


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_trained_from_the_command_line(tiny_folder: Path, colours: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--base", str(tiny_folder), "--out", str(run), "--prompt", "{q}", "--completion", "{a}", "--epochs", "2"]
    flags += ["--precision", "fp32", "--device", "cpu", "--train.learning_rate", "0.1", "--lora.variant", "ia3"]
    assert main(["train", str(colours), *flags]) == 0
    assert read_yaml(run / "config.yaml")["lora"]["variant"] == "ia3"
    assert read_json(run / "adapter" / "adapter_config.json")["peft_type"] == "IA3"
    weights = load_file(run / "adapter" / "adapter_model.safetensors")
    assert len(weights) == 14
    assert all((value - 1).abs().max() > 1e-3 for value in weights.values())
    assert "ia3" in (run / "report.html").read_text()
    evaluation = read_json(run / "evaluation.json")
    assert evaluation["adapted"]["loss"] < evaluation["base"]["loss"]
    (row,) = generate(run, ["a77"], device="cpu")
    assert {"prompt", "answer"} <= row.keys()
    assert main(["adapters", "merge", str(run), "--out", str(tmp_path / "merged"), "--device", "cpu"]) == 0
    again = tiny_module()
    assert load_adapter(again, run / "adapter").variant == "ia3"
    adapted = output(again)
    assert torch.allclose(output(PeftModel.from_pretrained(tiny_module(), run / "adapter")), adapted, atol=1e-5)
    assert not torch.allclose(adapted, output(tiny_module()), atol=1e-2)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_injected_counted_saved_and_merged(kind: str, tmp_path: Path) -> None:
    def states(model: nn.Module) -> Tensor:
        with torch.no_grad():
            result = model(IDS)
        return result.logits if kind == "llama" else result.last_hidden_state

    model, config = tiny_module(kind), LoraConfig(variant="ia3")
    plain, counted = states(model), trained(model, config)
    inject(model, config)
    assert counted.numbers == trainable_parameters(model) > 0
    assert torch.equal(states(model), plain)
    for name, parameter in model.named_parameters():
        if name.endswith("ia3_l"):
            parameter.data.uniform_(0.5, 1.5)
    adapted = states(model)
    assert not torch.allclose(adapted, plain, atol=1e-2)
    assert torch.allclose(states(merge(model)), adapted, atol=1e-4)
    with disabled(model):
        assert torch.equal(states(model), plain)
    save_adapter(model, config, tmp_path)
    again = tiny_module(kind)
    load_adapter(again, tmp_path)
    assert torch.equal(states(again), adapted)


def test_the_search_tries_it() -> None:
    assert choices()["form"] == ("lora", "rslora", "dora", "ia3", "pissa")
    settings = afina.RunSettings(base="b", data={"path": "d.jsonl"})
    assert configured(settings, defaults(1e-3) | {"form": "ia3"}, rows=100, batch_size=8).lora.variant == "ia3"


def test_what_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="ia3 has no dropout"):
        build(LoraConfig, {"variant": "ia3", "dropout": 0.1})
    model, config = tiny_module(), LoraConfig(variant="ia3")
    with pytest.raises(AdapterError, match=r"ia3 is for linear layers; model\.embed_tokens is an embedding"):
        inject(model, LoraConfig(variant="ia3", target_modules=("embed_tokens",)))
    inject(model, config)
    save_adapter(model, config, tmp_path / "a")
    with pytest.raises(AdapterError, match="more than A and B"):
        combine([tmp_path / "a", tmp_path / "a"], [1, 1], tmp_path / "x")


def test_weight_decay_leaves_it_alone_unless_it_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    def after_a_step_without_gradient() -> Tensor:
        model = tiny_module()
        inject(model, LoraConfig(variant="ia3"))
        optimizer = Optimizer(model, weight_decay=0.5)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        optimizer.step(0.1, 1.0)
        return next(p for name, p in model.named_parameters() if name.endswith("ia3_l"))

    assert torch.equal(after_a_step_without_gradient(), torch.ones(32, 1))
    monkeypatch.setattr(Ia3Linear, "decays", True)
    assert torch.allclose(after_a_step_without_gradient(), torch.full((32, 1), 0.95))
