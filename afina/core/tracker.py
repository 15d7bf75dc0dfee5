"""A tracker: another program that a run's numbers are logged to, such as TensorBoard.

The table is declared here because the settings, which choose from it, know nothing of `runs`, whose `trackers` fill it.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afina.core.registry import Registry

Log = Callable[[dict[str, float], int], None]  # values by name, at a step


@dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker is told of it: its `folder`, by whose name it is called, and its settings, `config`.

    `id` is the same each time it is resumed. `first` is the step that comes next: 0, or n + 1 where the run is resumed
    after step n.
    """

    folder: Path
    config: dict[str, Any]
    id: str
    first: int = 0


@dataclass(frozen=True)
class Tracker:
    """`package` is imported before training begins, so that a missing one is reported early; None where none is needed.

    `writes` are the files and folders that it makes in the run folder, which a new run there replaces.

    `open(run, closing)` starts a run, or continues the one with the same id, and returns what logs numbers to it. What
    it pushes onto `closing` is called at the end. `before_import` prepares the environment.

    A run that is killed some steps after a checkpoint takes them again. A tracker that `forgets`, when a run is
    continued, all it has of step `first` and later ones hears of them again; another does not, so that no step stands
    there twice.
    """

    name: str
    package: str | None
    open: Callable[[TrackedRun, ExitStack], Log]
    writes: tuple[str, ...] = ()
    forgets: bool = False
    before_import: Callable[[], None] = lambda: None


TRACKERS: Registry[Tracker] = Registry("afina.runs.trackers", "TRACKER", "tracker")


def flat(config: dict[str, Any]) -> dict[str, str]:
    """The settings that are not None, by dotted path, as text."""
    sections = {name: values for name, values in config.items() if isinstance(values, dict)}
    values = {name: value for name, value in config.items() if name not in sections}
    values |= {f"{section}.{name}": value for section, inner in sections.items() for name, value in inner.items()}
    return {name: str(value) for name, value in values.items() if value is not None}
