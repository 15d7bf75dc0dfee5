"""The event stream for programs that track experiments: TensorBoard, MLflow, Weights & Biases, Trackio. All are optional.

They hear and never answer. What leaves the machine is the user's to decide, by their own settings (`WANDB_MODE`,
`MLFLOW_TRACKING_URI`, `TRACKIO_SPACE_ID`). Otherwise TensorBoard writes into the run, MLflow into `mlflow.db` beside it, Trackio into
the user's cache, and Weights & Biases, which asks for an account, to its server. MLflow's own reports of its use are switched off.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

from afina.core.errors import SettingsError, near
from afina.core.events import Done, Event, HeldOut, Listener, Notice, Step

Log = Callable[[dict[str, float], int], None]

_STEP = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_gb")
_HELD_OUT = ("loss", "perplexity")
_DONE = ("seconds", "tokens", "peak_memory_gb")


class Trackers:
    """Hands the numbers of a run on to the named trackers. One that fails is left out from then on, with a warning."""

    def __init__(self, names: Sequence[str], listener: Listener) -> None:
        """Raises `SettingsError` where one is unknown or not installed."""
        check_trackers(names)
        self._names, self._listener, self._closing = tuple(dict.fromkeys(names)), listener, ExitStack()
        self._step = 0
        self._logs: dict[str, Log] = {}

    def open(self, run: Path, config: dict[str, Any]) -> None:
        """Begins a run in each, which is told its settings."""
        for name in self._names:
            try:
                self._logs[name] = _TRACKERS[name][1](run, config, self._closing)
            except Exception as error:  # whatever another program does, training goes on
                self._leave_out(name, error)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Step):
            self._step = event.step
            self._log({f"train/{name}": getattr(event, name) for name in _STEP})
        elif isinstance(event, HeldOut):
            self._step = event.step
            self._log({f"held_out/{name}": getattr(event, name) for name in _HELD_OUT})
        elif isinstance(event, Done):
            self._log({f"run/{name}": getattr(event, name) for name in _DONE})

    def result(self, evaluation: dict[str, Any]) -> None:
        """The scores of base and adapted model, in the end."""
        for model in ("base", "adapted"):
            self._log(
                {f"{model}/{name}": value for name, value in evaluation[model].items() if isinstance(value, float)}
            )

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
                self._leave_out(name, error)

    def _leave_out(self, name: str, error: Exception) -> None:
        self._listener(Notice(f"--track {name} failed and is left out from here on: {error}", warning=True))


def check_trackers(names: Sequence[str]) -> None:
    """Raises `SettingsError` where one is unknown or not installed."""
    for name in names:
        if name not in _TRACKERS:
            raise SettingsError(
                f"--track {name!r}: there is no such tracker.{near(name, list(_TRACKERS))}",
                f"choose of {', '.join(_TRACKERS)}",
            )
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is imported
        try:
            import_module(_TRACKERS[name][0])
        except Exception as error:  # absent, or broken in a way of its own
            raise SettingsError(
                f"--track {name} needs a package that cannot be imported here ({error})", f"pip install 'afina[{name}]'"
            ) from error


def _flat(config: dict[str, Any]) -> dict[str, str]:
    """The settings that say something, by dotted path, as text."""
    sections = {name: values for name, values in config.items() if isinstance(values, dict)}
    flat = {name: value for name, value in config.items() if name not in sections}
    flat |= {f"{section}.{name}": value for section, values in sections.items() for name, value in values.items()}
    return {name: str(value) for name, value in flat.items() if value is not None}


def _tensorboard(run: Path, config: dict[str, Any], closing: ExitStack) -> Log:
    writer = import_module("torch.utils.tensorboard").SummaryWriter(run / "tensorboard")
    closing.callback(writer.close)
    writer.add_text("settings", "\n\n".join(f"{name}: {value}" for name, value in _flat(config).items()))

    def log(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return log


def _mlflow(run: Path, config: dict[str, Any], closing: ExitStack) -> Log:
    mlflow: Any = import_module("mlflow")
    if not mlflow.is_tracking_uri_set():
        mlflow.set_tracking_uri(f"sqlite:///{(run.parent / 'mlflow.db').resolve()}")
        closing.callback(mlflow.set_tracking_uri, None)  # the next run may lie elsewhere
    mlflow.set_experiment("afina")
    mlflow.start_run(run_name=run.name)
    closing.callback(mlflow.end_run)
    mlflow.log_params({name: value[:250] for name, value in _flat(config).items()})
    return lambda values, step: mlflow.log_metrics(values, step=step)


def _wandb(run: Path, config: dict[str, Any], closing: ExitStack) -> Log:
    opened = import_module("wandb").init(project="afina", name=run.name, dir=str(run), config=config)
    closing.callback(opened.finish)
    return lambda values, step: opened.log(values, step=step)


def _trackio(run: Path, config: dict[str, Any], closing: ExitStack) -> Log:
    trackio: Any = import_module("trackio")
    trackio.init(project="afina", name=run.name, config=config)
    closing.callback(trackio.finish)
    return lambda values, step: trackio.log(values, step=step)


_TRACKERS: dict[
    str, tuple[str, Callable[[Path, dict[str, Any], ExitStack], Log]]
] = {  # its package, and how it is opened
    "tensorboard": ("torch.utils.tensorboard", _tensorboard),
    "mlflow": ("mlflow", _mlflow),
    "wandb": ("wandb", _wandb),
    "trackio": ("trackio", _trackio),
}
