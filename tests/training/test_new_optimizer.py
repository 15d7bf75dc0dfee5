"""An optimiser from outside the package: its steps, resumed runs, and the forecast of its memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from trainers import colour_data, train_adapter

from afina.core.events import Step
from afina.data.settings import DataSettings
from afina.forecast.estimate import forecast_training
from afina.forecast.machines import this_machine
from afina.forecast.workload import Workload
from afina.lora import LoraConfig, adapter_state, inject
from afina.models.load import Base, load_base
from afina.models.skeleton import read_skeleton
from afina.settings import RunSettings
from afina.training.checkpoint import read_latest
from afina.training.optimizer import Optimizer
from afina.training.optimizers import OPTIMIZERS


class Momentum:
    name = "momentum"
    moment_bytes = 4
    master_bytes = 0
    step_cost = 0.5
    rate_factor = 1.0

    def build(self, groups: list[dict[str, Any]], factors: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9)


def test_it_steps_as_torch_does() -> None:
    ours, theirs = (torch.nn.Linear(3, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    twin = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    with OPTIMIZERS.added(Momentum()):
        optimizer = Optimizer(ours, 0.0, kind="momentum")
    for i in range(3):
        for module in (ours, theirs):
            module(torch.full((1, 3), 1.0 + i)).sum().backward()
        optimizer.step(0.1, 1e9)
        twin.step()
        twin.zero_grad()
    assert torch.allclose(ours.weight, theirs.weight)


def test_no_masters_where_it_declares_none() -> None:
    layer = torch.nn.Linear(2, 2).to(torch.bfloat16)
    with OPTIMIZERS.added(Momentum()):
        assert Optimizer(layer, 0.0, kind="momentum").weights()["weight"].dtype == torch.bfloat16
    assert Optimizer(layer, 0.0).weights()["weight"].dtype == torch.float32


def test_killed_and_resumed(colours: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """Its moments are in the checkpoints: the resumed run ends as the one that was never stopped."""

    class Killed(Exception): ...

    def kill(event) -> None:
        if isinstance(event, Step) and event.step == 5:
            raise Killed

    def fresh() -> Base:
        base = load_base(str(tiny_folder), precision="fp32", device="cpu")
        inject(base.model.module, LoraConfig(rank=4))
        return base

    bases = [fresh() for _ in range(3)]
    data = colour_data(colours, bases[0])
    with OPTIMIZERS.added(Momentum()):
        how = {"optimizer": "momentum", "checkpoint_steps": 3, "eval_steps": 100, "early_stopping": 0, "epochs": 2}
        train_adapter(bases[0], data, None, **how)
        with pytest.raises(Killed):
            train_adapter(bases[1], data, tmp_path, kill, **how)
        found = read_latest(tmp_path)
        assert found
        assert all(name.endswith(" momentum_buffer") for name in found[0].moments)
        train_adapter(bases[2], data, None, state=found[0], **how)
    for name, value in adapter_state(bases[0].model.module).items():
        assert torch.equal(value, adapter_state(bases[2].model.module)[name])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_forecast_follows_its_bytes(tiny_folder: Path, tmp_path: Path, precision: str) -> None:
    base = read_skeleton(str(tiny_folder), cache_dir=tmp_path)
    machine = this_machine(tmp_path, "cpu", precision, measure=False)
    work = Workload([50] * 20, 0.5, 500, 4, 250, 250, 250, 250)

    def foreseen(optimizer: str, method: str) -> Any:
        data = DataSettings(path=tmp_path / "none.jsonl")
        train = {"optimizer": optimizer}
        settings = RunSettings(base=str(tiny_folder), data=data, train=train, method=method, precision=precision)
        return forecast_training(base, settings, work, machine)

    with OPTIMIZERS.added(Momentum()):
        for method in ("lora", "full"):
            adamw, momentum = foreseen("adamw", method), foreseen("momentum", method)
            masters = 4 if method == "full" and precision == "bf16" else 0
            assert adamw.memory.optimizer - momentum.memory.optimizer == (8 - 4 + masters) * adamw.trained
            assert adamw.disk - momentum.disk == 2 * (8 - 4 + 4) * adamw.trained
            assert momentum.seconds < adamw.seconds
