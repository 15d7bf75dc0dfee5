"""The one stream of what happens in a run. Consumers (display, metrics.jsonl, trackers) read it and never answer. And
the one form of what was examined: a machine, a run and whatever else."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import TypeAdapter, ValidationError

from afina.core.errors import InputError, brief
from afina.core.files import append_text, jsonl_rows, write_jsonl


@dataclass(frozen=True)
class Notice:
    """Something that the user should read: a choice and its reason, or a `warning`."""

    text: str
    warning: bool = False


State = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True)
class Finding:
    """Something that was looked at: its state, what was found, and what to do where it is not well."""

    what: str
    state: State
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Progress:
    """Work that is not training: `done` of `total` units of `stage`; of how many nobody knows where `total` is 0."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Step:
    """One optimiser step. `loss` is the mean over the step's labelled tokens, in nats. `memory_gb` is what the process
    holds on the run's device, `host_gb` beside it where that is a card."""

    step: int
    total: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    memory_gb: float
    seconds: float
    seconds_left: float
    host_gb: float | None = None


@dataclass(frozen=True)
class HeldOut:
    """What the held-out rows say after `step` steps; `best` so far or not.

    `numbers` are by name: loss (in nats per labelled token) and perplexity in supervised learning. The one called
    `measure` decides what is best.
    """

    step: int
    numbers: dict[str, float]
    best: bool
    measure: str = "loss"
    lower_is_better: bool = True

    @property
    def value(self) -> float:
        """The measure."""
        return self.numbers[self.measure]

    @property
    def cost(self) -> float:
        """The measure, with its sign turned where higher is better: of two, the lower is the better."""
        return self.value if self.lower_is_better else -self.value


@dataclass(frozen=True)
class Sample:
    """A prompt, the right answer to it, and what was answered."""

    prompt: str
    expected: str
    answer: str


@dataclass(frozen=True)
class Answers:
    """What the model in training, as it is after `step` steps, answers to a few held-out prompts, and how long that
    took."""

    step: int
    samples: tuple[Sample, ...]
    seconds: float


@dataclass(frozen=True)
class Done:
    """Training ended after `steps`, because of `reason`: completed, early stopping, interrupted or pruned (a trial of a
    search).

    Memory is that of the run's device (resident memory of the processor, what torch reserved on a card): at most, and
    before the data and the base were loaded. `host_peak_gb` is resident memory where the device is a card.
    `skipped_steps` are those whose gradients were too large for fp16.
    """

    steps: int
    reason: str
    seconds: float
    tokens: int
    tokens_per_second: float
    peak_memory_gb: float
    start_memory_gb: float = 0.0
    host_peak_gb: float | None = None
    skipped_steps: int = 0


Event: TypeAlias = Notice | Progress | Step | HeldOut | Answers | Done
Listener: TypeAlias = Callable[[Event], None]

_KINDS = {cls.__name__.lower(): cls for cls in (Notice, Progress, Step, HeldOut, Answers, Done)}
_SECONDS_BETWEEN = 0.5  # two reports of a `Ticker`
_RECORDED = (Step, HeldOut, Answers, Done)


def minutes(seconds: float) -> str:
    """The time in words: 42 s, 3.5 min, 2.1 h, 4 days."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86_400 else f"{seconds / 86_400:,.0f} days"


def ignore(event: Event) -> None:
    """The listener for callers who want no news."""


class Ticker:
    """Tells `listener` how far a piece of work is, every half second at most."""

    def __init__(self, listener: Listener) -> None:
        self._listener, self._last = listener, time.monotonic()

    def __call__(self, stage: str, done: int, total: int = 0) -> None:
        if (now := time.monotonic()) - self._last >= _SECONDS_BETWEEN:
            self._last = now
            self._listener(Progress(stage, done, total))


class MetricsFile:
    """Appends the numbers of a run to `metrics.jsonl`, one event a line, whole lines only."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: Event) -> None:
        if isinstance(event, _RECORDED):
            append_text(self.path, json.dumps(row(event)) + "\n")


def forget_after(path: Path, step: int) -> list[Step | HeldOut | Answers]:
    """Takes out of `metrics.jsonl` what came after `step`, which a run that is resumed from there writes again; returns
    it, but for the end."""
    if not path.exists():
        return []
    before, gone = [], []
    for line, event in _read(path):
        if isinstance(event, Step | HeldOut | Answers):
            if event.step > step:
                gone.append(event)
            else:
                before.append(line)
    write_jsonl(path, before)
    return gone


def read_events(path: Path) -> list[Event]:
    """What a run recorded in its `metrics.jsonl`, in order. Raises `InputError` where a line is no event."""
    return [event for _, event in _read(path)]


def _read(path: Path) -> Iterator[tuple[dict[str, object], Event]]:
    for line in jsonl_rows(path):
        try:
            yield line, parse(line)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else brief(error)
            what = f"{str(line)[:80]!r} is not an event ({why})"
            raise InputError(f"{path} does not hold what a run writes there: {what}") from error


def end_of(events: Sequence[Event]) -> Done | None:
    """How the training last ended; None where it was cut off."""
    return next((event for event in reversed(events) if isinstance(event, Done)), None)


def row(event: Event) -> dict[str, object]:
    """The event as one line of JSON, such as those of `metrics.jsonl`; `parse` reads it."""
    values = asdict(event)
    if isinstance(event, HeldOut):
        values = {"step": event.step, **event.numbers, "best": event.best}
        if (event.measure, event.lower_is_better) != ("loss", True):
            values |= {"measure": event.measure, "lower_is_better": event.lower_is_better}
    return {"event": type(event).__name__.lower(), **{k: value for k, value in values.items() if value is not None}}


def parse(row: dict[str, object]) -> Event:
    """The event of a `row`. Raises `ValueError`, `LookupError`, `TypeError` or `AttributeError` where it is none."""
    cls = _KINDS[str(row["event"])]
    if cls is HeldOut:
        names = [name for name in row if name not in ("event", *(field.name for field in fields(HeldOut)))]
        row = {**row, "numbers": {name: row[name] for name in names}}
    event: Event = _validator(cls).validate_python({f.name: row[f.name] for f in fields(cls) if f.name in row})
    if isinstance(event, HeldOut) and event.measure not in event.numbers:
        raise LookupError(f"it has no {event.measure}")
    return event


@cache
def _validator(cls: type[Event]) -> TypeAdapter[Event]:
    return TypeAdapter(cls)
