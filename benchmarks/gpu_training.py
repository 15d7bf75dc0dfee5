"""Whole trainings for gpu.py, by the trainer itself: what its steps wait for, number formats, resuming."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afina.core.events import Event, Listener, Step, ignore
from afina.data.template import Row
from afina.lora.peft_files import adapter_state
from afina.models.load import Base
from afina.training import Trainer, TrainingSettings, make_plan
from afina.training.checkpoint import State, read_latest
from afina.training.plan import PlanFacts

STEPS = 12


class Watched(Trainer):
    """Where the device is a card, waiting for it inside a step is an error; not in the first ones, which make what is
    made once."""

    steps = 0

    def _train_step(self, made: Any) -> None:
        with no_waits(self._device if self.steps >= 2 else torch.device("cpu")):
            super()._train_step(made)
        self.steps += 1


@contextmanager
def no_waits(device: torch.device) -> Iterator[None]:
    on_card = device.type == "cuda"
    if on_card:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if on_card:
            torch.cuda.set_sync_debug_mode("default")


def trained(
    base: Base, rows: Sequence[Row], listener: Listener = ignore, checkpoints: Path | None = None,
    state: State | None = None, share: bool = True,
) -> Watched:  # fmt: skip
    """The adapter of `base`, after a dozen steps of three rows each."""
    settings = TrainingSettings(
        epochs=3 * STEPS / len(rows), batch_size=3, learning_rate=5e-3, eval_steps=STEPS, checkpoint_steps=4,
        early_stopping=0, share=share,
    )  # fmt: skip
    plan, _ = make_plan(settings, PlanFacts([len(row.input_ids) for row in rows], 8, 32), 0)
    save = lambda: None  # noqa: E731 - nothing is kept
    trainer = Watched(base, rows, rows[:2], settings, plan, 0, listener, save, checkpoints, state)
    trainer.run()
    return trainer


def curve(base: Base, rows: Sequence[Row]) -> list[float]:
    """The loss of each step."""
    losses: list[float] = []

    def note(event: Event) -> None:
        if isinstance(event, Step):
            losses.append(event.loss)

    trained(base, rows, note)
    return losses


class _Cut(Exception): ...


def cut_and_resumed(first: Base, again: Base, rows: Sequence[Row], folder: Path) -> dict[str, Tensor]:
    """The adapter of a run that is cut off with `first`, two steps after its checkpoint, and resumed with `again`."""

    def cut(event: Event) -> None:
        if isinstance(event, Step) and event.step == STEPS // 2:
            raise _Cut

    try:
        trained(first, rows, cut, folder)
    except _Cut:
        found = read_latest(folder)
    assert found is not None
    trained(again, rows, checkpoints=folder, state=found[0])
    return adapter_of(again)


def adapter_of(base: Base) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in adapter_state(base.model.module).items()}
