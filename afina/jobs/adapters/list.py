"""`adapters list`: the adapters in a folder and below it."""

from os.path import exists
from pathlib import Path

from pydantic import RootModel

from afina.core.config import Result, Settings, setting
from afina.core.errors import AdapterError
from afina.core.events import Listener, Notice, ignore
from afina.core.job import Job
from afina.jobs.adapters.show import AdapterFacts, ShowAdapterSettings, show
from afina.lora.peft_config import CONFIG
from afina.lora.peft_files import PICKLED, WEIGHTS


class ListAdaptersSettings(Settings):
    folder: Path = setting(Path("runs"), positional="DIR")
    """Folder to look in."""


class UnreadableAdapter(Result):
    """An adapter that cannot be used as it is."""

    path: str
    problems: tuple[str, ...]
    """What is wrong with it."""
    remedy: str
    """What to do about it."""


class ListAdaptersResult(RootModel[tuple[AdapterFacts | UnreadableAdapter, ...]]):
    """The adapters, by path; those that cannot be read with what is wrong with them."""


def list(settings: ListAdaptersSettings, listener: Listener = ignore) -> ListAdaptersResult:
    """Describes every adapter below `folder` as `show` does; folders whose names begin with a dot are left out. Of one
    whose base was a folder or a file that is not here, the listener is told so.

    Raises `AdapterError` where there is no such folder.
    """
    root = settings.folder
    if not root.is_dir():
        raise AdapterError(f"{root}: no such folder", "give the folder to look in")
    found = {path.parent for name in (CONFIG, WEIGHTS, PICKLED) for path in root.rglob(name)}
    seen = (folder for folder in sorted(found) if not any(p.startswith(".") for p in folder.relative_to(root).parts))
    described = tuple(map(_described, seen))
    for each in described:
        if isinstance(each, AdapterFacts) and each.base and Path(each.base).is_absolute() and not exists(each.base):
            text = f"adapter {each.path} was made on {each.base}, which is not here: name its base with --base"
            listener(Notice(text, warning=True))
    return ListAdaptersResult(described)


def _described(folder: Path) -> AdapterFacts | UnreadableAdapter:
    try:
        return show(ShowAdapterSettings(run=folder))
    except AdapterError as error:
        return UnreadableAdapter(path=str(folder), problems=tuple(error.problems), remedy=error.remedy)


JOB = Job.of(list)
