"""An init from outside the package: what its one object says must be enough for training with it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import tiny_module
from safetensors.torch import load_file

from afina.core.config import build, read_yaml
from afina.core.errors import AdapterError, SettingsError
from afina.lora import LoraConfig, inject, load_adapter, lora_layers
from afina.lora.inits import INITS, Init, Needs, Sources
from afina.lora.variants.lora import LoraLinear
from afina.ui.cli import main

CALIBRATED: list[int] = []


class FirstInputs(Init):
    """A picks the first inputs, B = 0, after the model has run over the calibration rows."""

    name = "first_inputs"
    needs: Needs = "forward"

    def refuses(self, config: LoraConfig) -> Iterator[str]:
        if config.rank > 8:
            yield "first_inputs takes 8 inputs at most"

    def initialise(self, layers: dict[str, LoraLinear], sources: Sources) -> None:
        assert sources.calibrate is not None
        sources.calibrate()
        CALIBRATED.append(sources.config.rank)
        for layer in layers.values():
            inputs = layer.lora_a.shape[1]
            layer.set_factors(torch.eye(layer.rank, inputs), torch.zeros(len(layer.lora_b), layer.rank))


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with INITS.added(FirstInputs()):
        yield


def test_trained_from_the_command_line(tiny_folder: Path, colours: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ["--base", str(tiny_folder), "--out", str(run), "--prompt", "{q}", "--completion", "{a}", "--epochs", "1"]
    flags += ["--precision", "fp32", "--device", "cpu", "--train.learning_rate", "0.001", "--lora.rank", "4"]
    assert main(["train", str(colours), *flags, "--lora.init", "first_inputs"]) == 0
    assert CALIBRATED == [4]
    assert read_yaml(run / "config.yaml")["lora"]["init"] == "first_inputs"
    assert (run / "report.html").is_file()
    weights = load_file(run / "adapter" / "adapter_model.safetensors")
    a = [value for name, value in weights.items() if name.endswith("lora_A.weight")]
    assert all(torch.allclose(value, torch.eye(*value.shape), atol=0.05) for value in a)  # near where it began
    again = tiny_module()
    load_adapter(again, run / "adapter")
    assert next(lora_layers(again))[1].lora_b.abs().max() > 0


def test_what_it_refuses_and_needs() -> None:
    with pytest.raises(SettingsError, match="first_inputs takes 8 inputs at most"):
        build(LoraConfig, {"init": "first_inputs", "rank": 9})
    with pytest.raises(SettingsError, match="vera"):
        build(LoraConfig, {"init": "first_inputs", "rank": 8, "variant": "vera"})
    model = tiny_module()
    with pytest.raises(AdapterError, match="'first_inputs' looks at data"):
        inject(model, LoraConfig(rank=8, init="first_inputs"))
    assert not list(lora_layers(model))
