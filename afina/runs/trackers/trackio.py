"""Trackio, into the user's cache unless TRACKIO_SPACE_ID names a Space."""

from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

from afina.core.tracker import Log, Tracker


def _open(run: Path, config: dict[str, Any], closing: ExitStack) -> Log:
    trackio: Any = import_module("trackio")
    trackio.init(project="afina", name=run.name, config=config)
    closing.callback(trackio.finish)
    return lambda values, step: trackio.log(values, step=step)


TRACKER = Tracker("trackio", "trackio", _open)
