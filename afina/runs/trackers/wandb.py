"""Weights & Biases: to its server, which asks for an account, unless WANDB_MODE says otherwise."""

from contextlib import ExitStack
from importlib import import_module

from afina.core.tracker import Log, TrackedRun, Tracker


def _open(run: TrackedRun, closing: ExitStack) -> Log:
    opened = import_module("wandb").init(
        project="afina", name=run.folder.name, id=run.id, resume="allow", dir=str(run.folder), config=run.config
    )
    closing.callback(opened.finish)
    return lambda values, step: opened.log(values, step=step)


TRACKER = Tracker("wandb", "wandb", _open, writes=("wandb",))
