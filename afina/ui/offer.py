"""What is probably asked and answered in a file whose columns do not say it: offered with one key, or as a command."""

import os
import sys
from collections.abc import Sequence

from afina.core.config import Settings, changed, fields
from afina.core.errors import DataError, Unmapped
from afina.core.text import command_line

_YES = ("\r", "\n", "y", "Y")


def agreed(error: Unmapped, settings: Settings, typed: Sequence[str], as_json: bool) -> Settings:
    """The settings with the mapping that `error` suggests, where a person on a terminal takes it.

    Where nobody is asked, or something else is answered, it raises `DataError` with the command to type: what was
    `typed`, and the mapping."""
    flags = {field.path: field.flags[-1] for field in fields(type(settings)) if field.flags}
    mapping = {path: value for name, value in error.mapping.items() if (path := f"data.{name}") in flags}
    if not mapping:  # this command reads a file in no other way
        raise error
    command = command_line(*typed, *(word for path in mapping for word in (flags[path], mapping[path])))
    asks = error.task and not as_json and all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
    if not asks:
        raise Unmapped(error.summary, command, columns=error.columns, mapping=error.mapping, task=error.task)
    print(f"afina: {error.problems[0]}\n  → {command}\n", file=sys.stderr)
    taken = _key("Go on with it? Enter or y for yes, any other key for no: ") in _YES
    print("yes" if taken else "no", file=sys.stderr)
    if not taken:
        raise DataError("nothing was done", command)
    return changed(settings, mapping)


def _key(question: str) -> str:
    """The key that is pressed after the question; where a terminal cannot be read by the key, the first of a line."""
    try:
        import termios
        import tty
    except ImportError:  # Windows
        print(question, end="", file=sys.stderr, flush=True)
        return sys.stdin.readline()[:1]
    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    try:
        tty.setcbreak(number)  # forgets what was typed before
        print(question, end="", file=sys.stderr, flush=True)
        return os.read(number, 1).decode(errors="replace")
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)
