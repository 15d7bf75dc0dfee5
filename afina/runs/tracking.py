"""The event stream for trackers, other programs that a run's numbers are logged to.

They listen and never answer. What leaves the machine is the user's decision, through each tracker's own settings
(`WANDB_MODE`, `MLFLOW_TRACKING_URI`, `TRACKIO_SPACE_ID`).
"""

from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

from afina.core.errors import SettingsError
from afina.core.events import Done, Event, HeldOut, Listener, Notice, Step
from afina.core.tracker import TRACKERS, Log

_STEP = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_gb")
_DONE = ("seconds", "tokens", "peak_memory_gb")


class Trackers:
    """Logs the numbers of a run to the named trackers. One that fails is dropped from then on, with a warning."""

    def __init__(self, names: Sequence[str], listener: Listener) -> None:
        """Raises `SettingsError` where one is unknown or not installed."""
        check_trackers(names)
        self._names, self._listener, self._closing = tuple(dict.fromkeys(names)), listener, ExitStack()
        self._step = 0
        self._logs: dict[str, Log] = {}

    def open(self, run: Path, config: dict[str, Any]) -> None:
        """Starts a run in each, with its settings."""
        for name in self._names:
            try:
                self._logs[name] = TRACKERS[name].open(run, config, self._closing)
            except Exception as error:  # whatever another program does, training continues
                self._drop(name, error)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Step):
            self._step = event.step
            self._log({f"train/{name}": getattr(event, name) for name in _STEP})
        elif isinstance(event, HeldOut):
            self._step = event.step
            self._log({f"held_out/{name}": value for name, value in event.numbers.items()})
        elif isinstance(event, Done):
            self._log({f"run/{name}": getattr(event, name) for name in _DONE})

    def result(self, evaluation: dict[str, Any]) -> None:
        """Logs the scores of base and adapted model at the end."""
        for model in ("base", "adapted"):
            scores = {f"{model}/{name}": value for name, value in evaluation[model].items() if isinstance(value, float)}
            self._log(scores)

    def close(self) -> None:
        try:
            self._closing.close()
        except Exception as error:
            self._listener(Notice(f"a tracker could not be closed: {error}", warning=True))

    def _log(self, values: dict[str, float]) -> None:
        for name, log in list(self._logs.items()):
            try:
                log(values, self._step)
            except Exception as error:
                del self._logs[name]
                self._drop(name, error)

    def _drop(self, name: str, error: Exception) -> None:
        self._listener(Notice(f"--track {name} failed, and nothing more is logged to it: {error}", warning=True))


def check_trackers(names: Sequence[str]) -> None:
    """Raises `SettingsError` where one is unknown or not installed."""
    for name in names:
        tracker = TRACKERS[name]
        tracker.before_import()
        if tracker.package is None:
            continue
        try:
            import_module(tracker.package)
        except Exception as error:  # absent, or broken in a way of its own
            raise SettingsError(
                f"--track {name} needs the package {tracker.package!r}, which cannot be imported ({error})",
                f"pip install 'afina[{name}]'",
            ) from error
