"""What comparisons, searches and choices of a base share: a folder in which the same command resumes what was cut
off.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from afina.core.config import Settings, changed, command
from afina.core.errors import InputError, Interrupted, OutputError
from afina.core.events import Done, Listener, Notice, end_of, read_events
from afina.core.files import check_writable, write_yaml
from afina.data.parts import parted
from afina.runs.files import SEARCH, SearchRecord
from afina.runs.folder import RunFolder, is_complete
from afina.settings import RunSettings

TEST_SPLIT = 0.15  # of the rows, where no test split was asked for
_DAMAGED = (InputError, OSError, KeyError, ValueError, TypeError, AttributeError, IndexError)
_T = TypeVar("_T")


def with_test_split(settings: RunSettings) -> RunSettings:
    """The settings that all trainings share: with a test split, the same splits whatever the seed, and no folder."""
    settings = settings.model_copy(update={"data": parted(settings.data)})
    values: dict[str, Any] = {"data.seed": settings.data_seed, "out": None, "overwrite": False}
    if not (settings.data.test or settings.data.test_path):
        values["data.test"] = TEST_SPLIT
    return changed(settings, values)


@contextmanager
def resumable_folder(
    out: Path, job: str, asked: Settings, settings: RunSettings, more: dict[str, Any]
) -> Iterator[None]:
    """Locks the folder `out`, in whose `search.yaml` stands what is done there, `settings` and `more`: it is new, or
    has the same plan. `asked` are the settings of the `job`, from which the command is known that resumes it.

    A plan of which nothing was finished binds nobody, and is removed where the block ends before anything else was
    written. After Ctrl-C, says that what was finished is kept. Raises `OutputError` and `Interrupted`.
    """
    plan = {"settings": changed(settings, {"track": ()}).model_dump(mode="json"), **more}
    record = {"search": job, "command": command(job, asked), "finished": False, "plan": plan}
    with RunFolder(out).locked():
        _check_plan(out, job, plan)
        write_yaml(out / SEARCH, record)
        try:
            yield
            write_yaml(out / SEARCH, record | {"finished": True})
        except (Interrupted, KeyboardInterrupt):
            kept = f"what was finished is kept in {out}" if _holds_more(out) else "nothing was finished yet"
            raise Interrupted(f"interrupted; {kept}", "the same command resumes it") from None
        finally:
            if not _holds_more(out):
                (out / SEARCH).unlink(missing_ok=True)


def _check_plan(out: Path, job: str, plan: dict[str, Any]) -> None:
    """Raises `OutputError` where something in the folder was finished by another plan, or by none."""
    if not _holds_more(out):
        check_writable(out / SEARCH)
        return
    if not (out / SEARCH).exists():
        raise OutputError(f"--out {out} holds something that `afina {job}` did not make", "choose another --out")
    before = SearchRecord.read(out / SEARCH)
    if before.search != job:
        raise OutputError(f"--out {out} holds what `afina {before.search}` made", "choose another --out")
    if before.plan != plan:
        raise OutputError(
            f"--out {out} holds what `afina {job}` made with other settings "
            f"({', '.join(_differing(before.plan, plan))})",
            "give another --out, or the same settings to resume it",
        )


def _holds_more(folder: Path) -> bool:
    """Whether the folder holds more than the plan."""
    return folder.is_dir() and any(each.name != SEARCH for each in folder.iterdir())


def _differing(before: Any, after: Any, path: str = "") -> list[str]:
    """The dotted paths of the settings that differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for key in {**before, **after}
            for line in _differing(before.get(key), after.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if before == after else [path.removeprefix("settings.")]


def read_or_run(folder: Path, read: Callable[[], _T], run: Callable[[], None], listener: Listener) -> _T:
    """What `read` finds in `folder` once `run` has written it, now or before.

    A folder whose files are damaged is renamed, and its content is made again."""
    if is_complete(folder):
        try:
            return read()
        except _DAMAGED as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            aside = next(p for i in count(1) if not (p := folder.with_name(f"{folder.name}-damaged-{i}")).exists())
            listener(
                Notice(f"{folder} is damaged ({reason}): it is renamed to {aside.name}, and made again", warning=True)
            )
            folder.rename(aside)
    run()
    return read()


def end_of_training(run: Path) -> Done:
    """How the training in the folder `run` ended. Raises `ValueError` where it was cut off."""
    done = end_of(read_events(run / "metrics.jsonl"))
    if done is None:
        raise ValueError(f"{run / 'metrics.jsonl'} has no end")
    return done
