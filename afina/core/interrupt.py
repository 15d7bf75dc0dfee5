"""Ctrl-C asks a run to stop where nothing is lost; a second one ends it at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """`asked` becomes true on the first Ctrl-C inside `listening()`, and `then` is called."""

    def __init__(self, then: Callable[[], None] | None = None) -> None:
        self.asked, self._then = False, then

    @contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may handle signals
            return

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True
            if self._then is not None:
                self._then()

        before = signal.signal(signal.SIGINT, on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
