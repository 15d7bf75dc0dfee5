"""`runs show`: what a run was made of, its settings that are not the defaults, and its result."""

from pathlib import Path
from typing import Any

from pydantic import Field

from afina.core.config import Result, Settings, setting
from afina.core.events import Listener, ignore
from afina.core.job import Job
from afina.runs.history import show_run


class ShowRunSettings(Settings):
    run: Path = setting(..., positional="RUN")
    """Folder that `afina train` wrote."""


class ShowRunResult(Result):
    run: str
    data: str
    base: str
    method: str
    settings: dict[str, Any]
    """Those that are not the defaults, by dotted path."""
    training: dict[str, Any] = Field({})
    """Steps, end, minutes, tokens per second and peak memory, where training ended."""
    verdict: str
    findings: tuple[str, ...] = ()
    table: tuple[dict[str, Any], ...] = ()
    """The scores, a row each."""
    report: str | None = None


def show(settings: ShowRunSettings, listener: Listener = ignore) -> ShowRunResult:
    """Raises `InputError` where the folder holds no run, or a damaged one."""
    return ShowRunResult(**show_run(settings.run))


JOB = Job.of(show)
