"""`runs list`: the runs in a folder and below it, the newest first."""

from pathlib import Path
from typing import Any

from pydantic import RootModel

from afina.core.config import Settings, setting
from afina.core.events import Listener, ignore
from afina.core.job import Job
from afina.runs.history import list_runs


class ListRunsSettings(Settings):
    folder: Path = setting(Path("runs"), positional="DIR")
    """Folder to look in."""


class ListRunsResult(RootModel[tuple[dict[str, Any], ...]]):
    """Of each run or search its `run` (folder), `date` and `state`; `problem` where it cannot be read, else `data`,
    `base`, `method` (of a search: choose, compare or tune), `resume` (the command that goes on with it) where it is
    not complete, and `minutes`, `metric`, `base_score`, `adapted_score`, `difference`, `verdict`, `over_trivial` (the
    verdict over answers that need no model) and `rows` as far as it got."""


def list(settings: ListRunsSettings, listener: Listener = ignore) -> ListRunsResult:
    """Raises `InputError` where there is no such folder."""
    return ListRunsResult(tuple(list_runs(settings.folder)))


JOB = Job.of(list)
