"""MLflow, into `mlflow.db` beside the run folder unless MLFLOW_TRACKING_URI says where.

Its telemetry is switched off.
"""

import os
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

from afina.core.tracker import Log, Tracker, flat

_LONGEST = 250  # characters of a parameter that MLflow stores


def _before_import() -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is imported


def _open(run: Path, config: dict[str, Any], closing: ExitStack) -> Log:
    mlflow: Any = import_module("mlflow")
    if not mlflow.is_tracking_uri_set():
        mlflow.set_tracking_uri(f"sqlite:///{(run.parent / 'mlflow.db').resolve()}")
        closing.callback(mlflow.set_tracking_uri, None)  # the next run may be elsewhere
    mlflow.set_experiment("afina")
    mlflow.start_run(run_name=run.name)
    closing.callback(mlflow.end_run)
    mlflow.log_params({name: value[:_LONGEST] for name, value in flat(config).items()})
    return lambda values, step: mlflow.log_metrics(values, step=step)


TRACKER = Tracker("mlflow", "mlflow", _open, before_import=_before_import)
