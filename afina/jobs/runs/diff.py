"""`runs diff`: two runs compared: settings that differ, results side by side, and whether the second is better."""

from pathlib import Path
from typing import Any

from pydantic import Field

from afina.core.config import Result, Settings, setting
from afina.core.events import Listener, ignore
from afina.core.job import Job
from afina.runs.history import diff_runs


class DiffRunsSettings(Settings):
    first: Path = setting(..., positional="RUN")
    """Folder that `afina train` wrote."""
    second: Path = setting(..., positional="RUN")
    """The run that it is compared with."""


class DiffRunsResult(Result):
    settings: dict[str, tuple[Any, Any]]
    """Those that differ: of the first, and of the second."""
    words: str
    """What follows, in a sentence."""
    scores: dict[str, tuple[Any, Any]] = Field({})
    difference: dict[str, Any] = Field({})
    """Second − first of the main metric, with its interval, where both were evaluated on the same rows."""


def diff(settings: DiffRunsSettings, listener: Listener = ignore) -> DiffRunsResult:
    """Raises `InputError` where a folder holds no run, or a damaged one."""
    return DiffRunsResult(**diff_runs(settings.first, settings.second))


JOB = Job.of(diff)
