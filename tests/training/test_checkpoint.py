"""Runs that are killed and resumed, and damaged checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trainers import colour_data, train_adapter

from afina.core.events import Done, Step
from afina.data.load import Dataset
from afina.lora import LoraConfig, adapter_state, inject
from afina.models.load import Base, load_base
from afina.training.checkpoint import State, read_latest, write


@pytest.fixture
def data(colours: Path, tiny: Base) -> Dataset:
    return colour_data(colours, tiny)


@pytest.fixture
def fit(data: Dataset, tmp_path: Path) -> Callable[..., Done]:
    """`train_adapter` on the data, with checkpoints in a folder of the test's own."""

    def run(base: Base, *args: Any, **settings: Any) -> Done:
        return train_adapter(base, data, tmp_path / "checkpoints", *args, **settings)

    return run


@pytest.mark.parametrize("stopped_at", [2, 7, 11])
def test_a_resumed_run_ends_as_one_never_stopped(fit, tiny_folder: Path, tmp_path: Path, stopped_at: int) -> None:
    """Dropout needs the random state, AdamW its moments, the schedule its step, and the best adapter its weights."""
    how = {"epochs": 2, "checkpoint_steps": 3, "eval_steps": 4, "early_stopping": 0}

    def fresh() -> Base:
        base = load_base(str(tiny_folder), precision="fp32", device="cpu")
        inject(base.model.module, LoraConfig(rank=4, dropout=0.2))
        return base

    class Killed(Exception): ...

    def kill(event) -> None:
        if isinstance(event, Step) and event.step == stopped_at:
            raise Killed

    whole, cut, resumed = fresh(), fresh(), fresh()
    expected = fit(whole, **how)
    for path in (tmp_path / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(Killed):
        fit(cut, kill, **how)
    found = read_latest(tmp_path / "checkpoints")
    done = fit(resumed, state=found[0] if found else None, **how)
    assert (done.steps, done.tokens, done.reason) == (expected.steps, expected.tokens, "completed")
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    for name, value in adapter_state(whole.model.module).items():
        assert torch.equal(value, adapter_state(resumed.model.module)[name])


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, State(step=step, best=0.5, weights={"w": torch.full((2,), float(step))}), "mark")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-00000002.safetensors", "step-00000003.safetensors"]
    newest = tmp_path / names[-1]
    newest.write_bytes(newest.read_bytes()[:50])
    state, mark = read_latest(tmp_path)
    assert (state.step, state.best, state.weights["w"].tolist(), mark) == (2, 0.5, [2.0, 2.0], "mark")
