"""Runs a function in a process of its own, whose memory can be measured; JSON goes in, events and JSON come out."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

from afina.core import errors
from afina.core.errors import AfinaError, Interrupted, RunFailed
from afina.core.events import Event, Listener, parse, row
from afina.core.process.children import python
from afina.core.process.crash import explained
from afina.core.process.homes import cache_home
from afina.core.process.interrupt import StopRequest
from afina.core.text import shown_streams

# Each takes its arguments by name, and a listener; and gives what JSON can say, or nothing.
TARGETS = {
    "train": "afina.search.method_runs:train_method",
    "rates": "afina.search.method_runs:search_rate",
    "ask": "afina.search.method_runs:ask_base",
    "base": "afina.search.base_trial:try_base",
    "search": "afina.search.study:search_trials",
}


def run_in_process(target: str, arguments: dict[str, Any], listener: Listener) -> Any:
    """What the function `target` returns in a process of its own; its errors are raised here, Ctrl-C is passed on to
    it."""
    with start(target, arguments) as process:
        return finish(process, listener)


def start(target: str, arguments: dict[str, Any]) -> subprocess.Popen[str]:
    """Begins the work in a process of its own, which ends when this one does."""
    with _signals("SIG_BLOCK"):  # one that is sent while it starts waits until `_main` can tell of it
        process = subprocess.Popen(
            python("-m", "afina.runs.worker", target),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C at the terminal reaches it through us, once
        )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it could not even begin; `finish` says so
        process.stdin.write(json.dumps(arguments) + "\n")
        process.stdin.flush()
    return process


def finish(process: subprocess.Popen[str], listener: Listener) -> Any:
    """Hands its events on, and gives its result or raises its error."""
    assert process.stdout is not None
    stop, found = StopRequest(lambda: process.send_signal(signal.SIGINT)), None
    with stop.listening():
        try:
            for line in process.stdout:
                message = json.loads(line)
                if "event" in message:
                    listener(parse(message))
                else:
                    found = message
            code = process.wait()
        except BaseException:  # a second Ctrl-C, or a listener that failed
            process.kill()
            raise
    if found is None:
        if stop.asked:
            raise Interrupted("interrupted")
        raise RunFailed(f"a process of this work ended with code {code} and said nothing (killed, or out of memory?)")
    if "error" in found:
        raise getattr(errors, found["error"], RunFailed)(found["problems"], found["remedy"])
    return found["result"]


@contextmanager
def _signals(how: str) -> Iterator[None]:
    """Within the block Ctrl-C waits ("SIG_BLOCK") or does not ("SIG_UNBLOCK"), also in the processes that are started
    there."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        signal.pthread_sigmask(getattr(signal, how), [signal.SIGINT])
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _main() -> None:
    """Ctrl-C waits until there is what can be interrupted, and again when the result is being told."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to standard error
    told = sys.stdin.readline()
    if not told:
        return  # the parent process ended
    cache_home()
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def listener(event: Event) -> None:
        out.write(json.dumps(row(event)) + "\n")

    try:
        with shown_streams(sys.stdout, sys.stderr):
            module, _, name = TARGETS[sys.argv[1]].partition(":")
            target: Callable[..., Any] = getattr(import_module(module), name)
            with _signals("SIG_UNBLOCK"):
                last: dict[str, Any] = {"result": target(**json.loads(told), listener=listener)}
    except AfinaError as error:
        last = {"error": type(error).__name__, "problems": error.problems, "remedy": error.remedy}
    except Exception as error:
        shown = explained(error)
        last = {"error": type(shown).__name__, "problems": shown.problems, "remedy": shown.remedy}
    except KeyboardInterrupt:
        last = {"error": "Interrupted", "problems": ["interrupted"], "remedy": ""}
    out.write(json.dumps(last) + "\n")


def _end_with_parent() -> None:
    sys.stdin.read()  # ends when the parent process does, however it does
    os._exit(1)


if __name__ == "__main__":
    _main()
