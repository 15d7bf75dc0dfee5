"""From a file of examples to an adapter that was verified and evaluated."""

from pathlib import Path

from afina.core.events import Listener, ignore
from afina.runs.training import TrainResult, resume_run, train_run
from afina.settings import RunSettings


def train(settings: RunSettings, listener: Listener = ignore) -> TrainResult:
    """Trains a LoRA adapter as `settings` say, checks what was saved, and evaluates it against the base.

    Raises `InputError` (nothing was written), `RunFailed`, or `Interrupted` after Ctrl-C (the adapter is kept).
    """
    return train_run(settings, listener)


def resume(folder: Path | str, listener: Listener = ignore) -> TrainResult:
    """Goes on with the run in `folder`, which was killed or interrupted, with the settings it recorded.

    On the same machine it ends with the adapter that it would have had, bit for bit. A run that was killed before its first
    checkpoint begins again. Raises as `train` does, also where the run is complete or its data are not what they were.
    """
    return resume_run(folder, listener)
