"""What a person sees while a job runs: a live line on a terminal, plain lines elsewhere; on standard error."""

import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

from rich.progress import Progress as RichProgress
from rich.progress import TextColumn

from afina.core.errors import counted, shortened
from afina.core.events import Answers, Done, Event, HeldOut, Notice, Progress, Step, minutes
from afina.ui.output import Output

_SECONDS_BETWEEN_LINES = 15.0


class Display:
    """A listener that writes to standard error."""

    def __init__(self) -> None:
        self._console = Output(sys.stderr)
        self._live: RichProgress | None = None
        self._task: Any = None
        self._last_line = 0.0
        self._held_out = ""

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._live = RichProgress(
                TextColumn("{task.description}", markup=False), console=self._console, transient=True
            )
            self._task = self._live.add_task("", total=None)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        match event:
            case Notice():
                self._say(f"warning: {event.text}" if event.warning else event.text)
            case Step():
                self._tick(
                    f"step {event.step}/{event.total}  loss {event.loss:.3f}{self._held_out}  "
                    f"{event.tokens_per_second:.0f} tokens/s  {event.memory_gb:.1f} GB  "
                    f"{minutes(event.seconds_left)} left",
                    event.step == 1,
                )
            case HeldOut():
                self._held_out = f"  held out {event.value:.3f}"
                best = ", the best of training so far" if event.best else ""
                self._say(f"after step {event.step}: held-out {event.measure} {event.value:.3f}{best}")
            case Answers():
                for each in event.samples:
                    said = "right" if each.answer == each.expected else f"expected {shortened(each.expected)}"
                    self._say(f"  {shortened(each.prompt)}: {shortened(each.answer)} ({said})")
            case Progress():
                done = f"{event.done} of {event.total}" if event.total else f"{event.done:,}" if event.done else ""
                self._tick(": ".join(filter(None, (event.stage, done))), event.done == event.total > 0)
            case Done():
                self._held_out = ""
                self._say(
                    f"training {event.reason}: {counted(event.steps, 'step')} in {minutes(event.seconds)}, "
                    f"{event.tokens_per_second:.0f} tokens/s, peak memory {event.peak_memory_gb:.1f} GB"
                )

    def _say(self, text: str) -> None:
        with suppress(OSError):  # a message that cannot be written must not end the job
            self._console.print(text)

    def _tick(self, text: str, important: bool) -> None:
        """Messages that replace each other: on the live line of a terminal, else a plain line now and then."""
        if self._live:
            self._live.update(self._task, description=text)
        elif important or time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._say(text)
