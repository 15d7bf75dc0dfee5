"""Ctrl-C asks a run to stop where nothing is lost; a second one ends it at once. So do the signals by which a system
that shuts down, a scheduler or a closed terminal ends a process (SIGTERM, SIGHUP)."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def interrupt_on_all_signals() -> None:
    """Lets the other signals do what Ctrl-C does, but for those that the caller ignores (nohup)."""
    for each in _SIGNALS if threading.current_thread() is threading.main_thread() else ():
        if signal.getsignal(each) == signal.SIG_DFL:
            signal.signal(each, signal.default_int_handler)


class StopRequest:
    """`asked` becomes true on the first of the signals inside `listening()`, and `then` is called."""

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

        before = {each: signal.getsignal(each) for each in _SIGNALS}
        before = {each: handler for each, handler in before.items() if handler not in (signal.SIG_IGN, None)}
        for each in before:
            signal.signal(each, on_signal)
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
