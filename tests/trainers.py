"""Short trainings on the tiny model and the colours, for tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from afina.core.events import Done, Listener, ignore
from afina.data.load import Dataset, load_data
from afina.data.settings import DataSettings
from afina.lora import LoraConfig, inject, lora_layers
from afina.models.load import Base
from afina.training import Trainer, TrainingSettings, make_plan
from afina.training.plan import PlanFacts


def colour_data(colours: Path, base: Base) -> Dataset:
    return load_data(DataSettings(path=colours, prompt="{q}", completion="{a}", held_out=0.2), base)


def trainer(
    base: Base, data: Dataset, settings: TrainingSettings, checkpoints: Path | None, listener: Listener = ignore,
    save: Callable[[], None] = lambda: None, **more: Any,
) -> Trainer:  # fmt: skip
    steps, _ = make_plan(settings, PlanFacts([len(row.input_ids) for row in data.train], 4, 32), 0)
    return Trainer(base, data.train, data.held_out, settings, steps, 0, listener, save, checkpoints, **more)


def train_adapter(
    base: Base, data: Dataset, checkpoints: Path | None, listener: Listener = ignore,
    save: Callable[[], None] = lambda: None, state: Any = None, **settings: Any,
) -> Done:  # fmt: skip
    """Trains an adapter, or the one that is there; `settings` are the training's."""
    if not list(lora_layers(base.model.module)):
        inject(base.model.module, LoraConfig(rank=4))
    given = TrainingSettings(**({"learning_rate": 1e-2, "epochs": 1} | settings))
    return trainer(base, data, given, checkpoints, listener, save, state=state).run()
