"""The event stream for trackers, other programs that a run's numbers are logged to.

They listen and never answer. What leaves the machine is the user's decision, through each tracker's own settings
(`WANDB_MODE`, `MLFLOW_TRACKING_URI`, `TRACKIO_SPACE_ID`).
"""

from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import BaseModel

from afina.core.errors import InputError, SettingsError
from afina.core.events import Answers, Done, Event, HeldOut, Listener, Notice, Step
from afina.core.files import read_json, write_json
from afina.core.tracker import TRACKERS, Log, TrackedRun

_STEP = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_gb")
ID_FILE = "tracking.json"  # in the run folder
_DONE = ("seconds", "tokens", "peak_memory_gb")


class Trackers:
    """Logs the numbers of a run to the named trackers. One that fails is dropped from then on, with a warning."""

    def __init__(self, names: Sequence[str], listener: Listener) -> None:
        """Raises `SettingsError` where one is unknown or not installed."""
        check_trackers(names)
        self._names, self._listener, self._closing = tuple(dict.fromkeys(names)), listener, ExitStack()
        self._step = 0
        self._told = _Told(id="")
        self._end: dict[str, float] = {}
        self._logs: dict[str, Log] = {}

    def open(
        self, folder: Path, config: dict[str, Any], first: int = 0, again: Sequence[Step | HeldOut | Answers] = ()
    ) -> None:
        """Starts a run in each, with its settings; or continues it at step `first`. What was logged of later steps,
        before it was cut off, comes `again`.
        """
        self._step = max(0, first - 1)
        if not self._names:
            return
        file = folder / ID_FILE
        try:
            self._told = _Told.model_validate(read_json(file))
        except (InputError, ValueError):  # a new run, or a damaged file
            self._told = _Told(id=uuid4().hex)
        for event in again:
            self._told.last[_kind(event)] = max(event.step, self._told.last.get(_kind(event), -1))
        write_json(file, self._told.model_dump())
        run = TrackedRun(folder, config, self._told.id, first)
        for name in self._names:
            try:
                self._logs[name] = TRACKERS[name].open(run, self._closing)
            except Exception as error:  # whatever another program does, training continues
                self._drop(name, error)

    def __call__(self, event: Event) -> None:
        known = isinstance(event, Step | HeldOut) and event.step <= self._told.last.get(_kind(event), -1)
        if isinstance(event, Step):
            self._step = event.step
            self._log({f"train/{name}": getattr(event, name) for name in _STEP}, known)
        elif isinstance(event, HeldOut):
            self._step = event.step
            self._log({f"held_out/{name}": value for name, value in event.numbers.items()}, known)
        elif isinstance(event, Done):
            self._end = {f"run/{name}": getattr(event, name) for name in _DONE}

    def result(self, evaluation: dict[str, Any]) -> None:
        """Logs what the run took, and the scores of base and adapted model: once, for a run that is cut off before
        tells how its training ended once more."""
        self._log(self._end)
        for model in ("base", "adapted"):
            scores = {f"{model}/{name}": value for name, value in evaluation[model].items() if isinstance(value, float)}
            self._log(scores)

    def close(self) -> None:
        try:
            self._closing.close()
        except Exception as error:
            self._listener(Notice(f"a tracker could not be closed: {error}", warning=True))

    def _log(self, values: dict[str, float], known: bool = False) -> None:
        """`known`: trackers that forget nothing have them already."""
        for name, log in list(self._logs.items()):
            if known and not TRACKERS[name].forgets:
                continue
            try:
                log(values, self._step)
            except Exception as error:
                del self._logs[name]
                self._drop(name, error)

    def _drop(self, name: str, error: Exception) -> None:
        self._listener(Notice(f"--track {name} failed, and nothing more is logged to it: {error}", warning=True))


class _Told(BaseModel):
    """`tracking.json`: under which id trackers know the run, and up to which step they were told of events of each
    kind by processes that were cut off (which may be further than those after them came)."""

    id: str
    last: dict[str, int] = {}


def _kind(event: Event) -> str:
    return type(event).__name__


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
