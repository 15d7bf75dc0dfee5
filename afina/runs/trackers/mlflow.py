"""MLflow, into `mlflow.db` beside the run folder unless MLFLOW_TRACKING_URI says where.

Its telemetry is switched off.
"""

import os
from contextlib import ExitStack
from importlib import import_module
from typing import Any

from afina.core.tracker import Log, TrackedRun, Tracker, flat

_ID = "afina_id"  # the tag by which a run is found again
_LONGEST = 250  # characters of a parameter that MLflow stores


def _before_import() -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is imported


def _open(run: TrackedRun, closing: ExitStack) -> Log:
    mlflow: Any = import_module("mlflow")
    if not mlflow.is_tracking_uri_set():
        mlflow.set_tracking_uri(f"sqlite:///{(run.folder.parent / 'mlflow.db').resolve()}")
        closing.callback(mlflow.set_tracking_uri, None)  # the next run may be elsewhere
    mlflow.set_experiment("afina")
    before = mlflow.search_runs(filter_string=f"tags.{_ID} = '{run.id}'", output_format="list")
    known = before[0].info.run_id if before else None
    mlflow.start_run(run_id=known, run_name=None if known else run.folder.name, tags={_ID: run.id})
    closing.callback(mlflow.end_run)
    if known is None:
        mlflow.log_params({name: value[:_LONGEST] for name, value in flat(run.config).items()})
    return lambda values, step: mlflow.log_metrics(values, step=step)


TRACKER = Tracker("mlflow", "mlflow", _open, before_import=_before_import)
