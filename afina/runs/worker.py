"""Runs a function in a process of its own, whose memory can be measured; JSON goes in, events and JSON come out."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
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


def _main() -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to standard error
    arguments = json.loads(sys.stdin.readline())
    cache_home()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    module, _, name = TARGETS[sys.argv[1]].partition(":")
    target: Callable[..., Any] = getattr(import_module(module), name)

    def listener(event: Event) -> None:
        out.write(json.dumps(row(event)) + "\n")

    try:
        with shown_streams(sys.stdout, sys.stderr):
            last: dict[str, Any] = {"result": target(**arguments, listener=listener)}
    except AfinaError as error:
        last = {"error": type(error).__name__, "problems": error.problems, "remedy": error.remedy}
    except Exception as error:
        told = explained(error)
        last = {"error": type(told).__name__, "problems": told.problems, "remedy": told.remedy}
    except KeyboardInterrupt:
        last = {"error": "Interrupted", "problems": ["interrupted"], "remedy": ""}
    out.write(json.dumps(last) + "\n")


def _end_with_parent() -> None:
    sys.stdin.read()  # ends when the parent process does, however it does
    os._exit(1)


if __name__ == "__main__":
    _main()
