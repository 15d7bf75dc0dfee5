"""The files in which a comparison, a search or a choice of a base keeps what it found, so that it is not found twice:
what each holds, declared once."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field

from afina.core.errors import InputError
from afina.core.events import Listener, Notice
from afina.runs.files import Recorded

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]
T = TypeVar("T")


class Share(Recorded):
    """Of a full training, that each base gets."""

    share: Annotated[Positive, Field(le=1)]


class ProofRows(Recorded):
    """Of the full trainings at the end of a search."""

    rows: int = Field(ge=1)


class TriedRate(Recorded):
    rate: Positive
    loss: Number | None
    """None where training diverged."""
    rows: int = Field(ge=0)
    seconds: Seconds


class Rates(Recorded):
    """The learning rates that were tried for a method, and the best once all were."""

    tried: list[TriedRate]
    rate: Positive | None = None


class Cost(Recorded):
    """The memory of a method that was not trained."""

    peak_memory_gb: Number
    start_memory_gb: Number


class PaceRecord(Recorded):
    """`time_plan.Pace`."""

    row: Seconds
    look: Seconds
    load: Number
    rest: Seconds


class RangeTest(Recorded):
    """Which learning rates are worth trying, and what work takes here."""

    rule: Positive
    low: Positive
    high: Positive
    rates: list[Number]
    losses: list[Number]
    pace: PaceRecord
    seconds: Seconds
    full_rows: int = Field(ge=1)
    trial_rows: int = Field(ge=1)
    proof_seconds: Seconds


class Repeats(Recorded):
    """Held-out losses with other seeds, and the seconds of each training."""

    best: list[Number]
    defaults: list[Number]
    seconds: list[Seconds]


def kept(read: Callable[[Path], T], path: Path, listener: Listener) -> T | None:
    """What `read` makes of the file; None where it is not there, or is damaged, which is told: what it held is found
    again."""
    try:
        return read(path) if path.exists() else None
    except InputError as error:
        listener(Notice(f"{str(error).splitlines()[0]}: it is made again", warning=True))
        return None
