"""TensorBoard, written into the run folder."""

from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

from afina.core.tracker import Log, Tracker, flat


def _open(run: Path, config: dict[str, Any], closing: ExitStack) -> Log:
    writer = import_module("torch.utils.tensorboard").SummaryWriter(run / "tensorboard")
    closing.callback(writer.close)
    writer.add_text("settings", "\n\n".join(f"{name}: {value}" for name, value in flat(config).items()))

    def log(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return log


TRACKER = Tracker("tensorboard", "torch.utils.tensorboard", _open, writes=("tensorboard",))
