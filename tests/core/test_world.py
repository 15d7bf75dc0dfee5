"""Two processes that train together come out as one: the second is a thread here, with a model of its own."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from trainers import colour_data, trainer

from afina.core.events import Event, HeldOut, Step
from afina.core.world import SINGLE, World
from afina.lora import LoraConfig, adapter_state, inject
from afina.models.load import load_base
from afina.training import TrainingSettings
from afina.training.checkpoint import read_latest


class Meeting:
    """Where two threads lay down a value each, and take both."""

    def __init__(self) -> None:
        self.barrier, self.values = Barrier(2, timeout=300), [None, None]


@dataclass(frozen=True)
class Threaded(World):
    meeting: Any = None

    def exchange(self, value):
        self.meeting.values[self.rank] = value
        self.meeting.barrier.wait()
        values = list(self.meeting.values)
        self.meeting.barrier.wait()  # nobody lays down the next before all have taken
        return values


@contextmanager
def two() -> Iterator[Any]:
    """Calls a function in both processes at one time; their results, by rank."""
    meeting = Meeting()
    with ThreadPoolExecutor(2) as pool:
        yield lambda function: list(pool.map(function, [Threaded(rank, 2, meeting) for rank in (0, 1)]))


def test_one_process_is_its_own_world() -> None:
    assert (SINGLE.main, SINGLE.sum(3), SINGLE.agree(False), SINGLE.seed(7)) == (True, 3, False, 7)
    items = [3, 1, 2]
    assert SINGLE.share(items) == items
    parameter = torch.nn.Parameter(torch.ones(2))
    SINGLE.sum_gradients([parameter])
    assert parameter.grad is None
    with pytest.raises(AssertionError):
        World(0, 2).sum(1)


def test_sums_decisions_and_shares() -> None:
    with two() as both:
        assert both(lambda world: world.sum(world.rank + 1)) == [3, 3]
        assert both(lambda world: world.agree(world.rank == 0)) == [True, True]
        assert both(lambda world: list(world.share([0, 1, 2, 3, 4]))) == [[0, 2, 4], [1, 3]]
        assert both(lambda world: (world.main, world.seed(5))) == [(True, 5), (False, 6)]

    def gradient(world: World) -> list[Any]:
        known, partly, never = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
        known.grad = torch.full((2,), 1.0 + world.rank)
        if world.rank == 1:
            partly.grad = torch.ones(2)
        world.sum_gradients([known, partly, never])
        return [p.grad if p.grad is None else p.grad.tolist() for p in (known, partly, never)]

    with two() as both:
        assert both(gradient) == [[[3.0, 3.0], [1.0, 1.0], None]] * 2


def test_two_processes_train_as_one(colours: Path, tiny_folder: Path, tmp_path: Path) -> None:
    """The batch of 5 rows is not even; the main process alone saves, checkpoints and speaks."""
    settings = TrainingSettings(
        epochs=2, batch_size=5, learning_rate=1e-2, eval_steps=4, checkpoint_steps=4, early_stopping=0
    )

    def train(world: World) -> tuple[list[Event], dict[str, torch.Tensor], int, Path]:
        base = load_base(str(tiny_folder), precision="fp32", device="cpu")
        inject(base.model.module, LoraConfig(rank=4))
        data, events, saved = colour_data(colours, base), [], []
        folder = tmp_path / f"{world.rank} of {world.size}"
        trainer(
            base, data, settings, folder, events.append, lambda: saved.append(1), world=world, rehearse=world.size == 1
        ).run()
        return events, adapter_state(base.model.module), len(saved), folder

    events, weights, saved, _ = train(SINGLE)
    with two() as both:
        (main_events, main_weights, main_saved, folder), (other_events, other_weights, other_saved, none) = both(train)

    def numbers(events: list[Event]) -> list[float]:
        return [
            number
            for e in events
            if isinstance(e, Step | HeldOut)
            for number in ((e.loss, e.grad_norm, e.learning_rate) if isinstance(e, Step) else (e.value, e.best))
        ]

    assert numbers(main_events) == pytest.approx(numbers(events), rel=1e-3)
    assert (main_saved, other_saved, other_events) == (saved, 0, [])
    for name, value in weights.items():
        assert torch.equal(main_weights[name], other_weights[name])
        assert torch.allclose(main_weights[name], value, atol=1e-3)
    assert not none.exists()
    found = read_latest(folder)
    assert found
    assert {"cpu", "cpu1"} <= set(found[0].random)
