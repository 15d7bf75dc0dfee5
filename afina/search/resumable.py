"""What comparisons, searches and choices of a base share: a folder in which the same command resumes what was cut
off.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from afina.core.config import changed, read_yaml
from afina.core.errors import InputError, Interrupted, OutputError
from afina.core.events import Done, Listener, Notice, end_of, read_events
from afina.core.files import check_writable, write_yaml
from afina.runs.folder import RunFolder, is_complete
from afina.settings import RunSettings

TEST_SPLIT = 0.15  # of the rows, where no test split was asked for
_DAMAGED = (InputError, OSError, KeyError, ValueError, TypeError, AttributeError, IndexError)
_T = TypeVar("_T")


def with_test_split(settings: RunSettings) -> RunSettings:
    """The settings that all trainings share: with a test split, the same splits whatever the seed, and no folder."""
    values: dict[str, Any] = {"data.seed": settings.data_seed, "out": None, "overwrite": False}
    if not (settings.data.test or settings.data.test_path):
        values["data.test"] = TEST_SPLIT
    return changed(settings, values)


@contextmanager
def resumable_folder(plan_file: Path, settings: RunSettings, more: dict[str, Any], what: str) -> Iterator[None]:
    """Locks the folder of `plan_file`, which records what is done there: it is new, or has the same plan.

    A plan of which nothing was finished binds nobody, and is removed where the block ends before anything else was
    written. After Ctrl-C, says that what was finished is kept. Raises `OutputError` and `Interrupted`.
    """
    out = plan_file.parent
    plan = {"settings": changed(settings, {"track": ()}).model_dump(mode="json"), **more}
    with RunFolder(out).locked():
        _write_or_compare(plan_file, plan, what)
        try:
            yield
        except (Interrupted, KeyboardInterrupt):
            kept = f"what was finished is kept in {out}" if _holds_more(plan_file) else "nothing was finished yet"
            raise Interrupted(f"interrupted; {kept}", "the same command resumes it") from None
        finally:
            if not _holds_more(plan_file):
                plan_file.unlink(missing_ok=True)


def _write_or_compare(plan_file: Path, plan: dict[str, Any], what: str) -> None:
    """Writes the plan, or raises `OutputError` where something was finished by another one."""
    if not _holds_more(plan_file):
        check_writable(plan_file)
        write_yaml(plan_file, plan)
        return
    if not plan_file.exists():
        raise OutputError(f"--out {plan_file.parent} holds something that is no {what}", "choose another --out")
    before = read_yaml(plan_file)
    if before != plan:
        raise OutputError(
            f"--out {plan_file.parent} holds a {what} with other settings ({', '.join(_differing(before, plan))})",
            "give another --out, or the same settings to resume it",
        )


def _holds_more(plan_file: Path) -> bool:
    """Whether the folder holds more than the plan."""
    folder = plan_file.parent
    return folder.is_dir() and any(each != plan_file for each in folder.iterdir())


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
