"""Weights & Biases: to its server, which asks for an account, unless WANDB_MODE says otherwise."""

from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

from afina.core.tracker import Log, Tracker


def _open(run: Path, config: dict[str, Any], closing: ExitStack) -> Log:
    opened = import_module("wandb").init(project="afina", name=run.name, dir=str(run), config=config)
    closing.callback(opened.finish)
    return lambda values, step: opened.log(values, step=step)


TRACKER = Tracker("wandb", "wandb", _open, writes=("wandb",))
