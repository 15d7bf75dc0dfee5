"""TensorBoard, written into the run folder."""

from contextlib import ExitStack
from importlib import import_module

from afina.core.tracker import Log, TrackedRun, Tracker, flat


def _open(run: TrackedRun, closing: ExitStack) -> Log:
    folder = run.folder / "tensorboard"
    is_new = not folder.exists()
    # TensorBoard forgets the numbers that other files in the folder have of the first step and of later ones.
    writer = import_module("torch.utils.tensorboard").SummaryWriter(folder, purge_step=run.first)
    closing.callback(writer.close)
    if is_new:
        writer.add_text("settings", "\n\n".join(f"{name}: {value}" for name, value in flat(run.config).items()))

    def log(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return log


TRACKER = Tracker("tensorboard", "torch.utils.tensorboard", _open, writes=("tensorboard",), forgets=True)
