"""Standard input, output and error, which whoever starts a process may have closed."""

import os
import sys
from contextlib import suppress
from typing import TextIO


def open_standard_files() -> None:
    """Opens those that are closed on nothing: the next file to be opened would get their numbers, and what libraries
    print would be written into it."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - it stays


def discard(stream: TextIO) -> None:
    """Lets what is still written to `stream`, which nobody reads, go nowhere: no flush at the end may fail."""
    with suppress(OSError, ValueError):  # it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
