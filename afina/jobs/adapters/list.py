"""`adapters list`: the adapters in a folder and below it."""

from pathlib import Path

from pydantic import RootModel

from afina.core.config import Settings, setting
from afina.core.errors import AdapterError
from afina.core.events import Listener, ignore
from afina.core.job import Job
from afina.jobs.adapters.show import AdapterFacts, ShowAdapterSettings, show
from afina.lora.peft_config import CONFIG


class ListAdaptersSettings(Settings):
    folder: Path = setting(Path("runs"), positional="DIR")
    """Folder to look in."""


class ListAdaptersResult(RootModel[tuple[AdapterFacts, ...]]):
    """The adapters, by path."""


def list(settings: ListAdaptersSettings, listener: Listener = ignore) -> ListAdaptersResult:
    """Describes every adapter below `folder` as `show` does. Raises `AdapterError`."""
    if not settings.folder.is_dir():
        raise AdapterError(f"{settings.folder}: no such folder", "give the folder to look in")
    found = sorted(settings.folder.rglob(CONFIG))
    return ListAdaptersResult(tuple(show(ShowAdapterSettings(run=path.parent)) for path in found))


JOB = Job.of(list)
