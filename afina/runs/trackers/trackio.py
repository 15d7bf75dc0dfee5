"""Trackio, into the user's cache unless TRACKIO_SPACE_ID names a Space."""

from contextlib import ExitStack
from importlib import import_module
from typing import Any

from afina.core.tracker import Log, TrackedRun, Tracker


def _open(run: TrackedRun, closing: ExitStack) -> Log:
    trackio: Any = import_module("trackio")
    name = f"{run.folder.name}-{run.id[:6]}"  # it finds runs again by their names
    trackio.init(project="afina", name=name, config=run.config, resume="allow")
    closing.callback(trackio.finish)
    return lambda values, step: trackio.log(values, step=step)


TRACKER = Tracker("trackio", "trackio", _open)
