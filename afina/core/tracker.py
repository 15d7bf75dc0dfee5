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
class Tracker:
    """`package` is imported before training begins, so that a missing one is reported early; None where none is needed.

    `writes` are the files and folders that it makes in the run folder, which a new run there replaces.

    `open(run, config, closing)` starts a run named after the folder `run`, with the settings `config`, and returns
    what logs numbers to it; what it pushes onto `closing` is called at the end. `before_import` prepares the
    environment.
    """

    name: str
    package: str | None
    open: Callable[[Path, dict[str, Any], ExitStack], Log]
    writes: tuple[str, ...] = ()
    before_import: Callable[[], None] = lambda: None


TRACKERS: Registry[Tracker] = Registry("afina.runs.trackers", "TRACKER", "tracker")


def flat(config: dict[str, Any]) -> dict[str, str]:
    """The settings that are not None, by dotted path, as text."""
    sections = {name: values for name, values in config.items() if isinstance(values, dict)}
    values = {name: value for name, value in config.items() if name not in sections}
    values |= {f"{section}.{name}": value for section, inner in sections.items() for name, value in inner.items()}
    return {name: str(value) for name, value in values.items() if value is not None}
