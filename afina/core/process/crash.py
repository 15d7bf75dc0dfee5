"""The last handler: an error that nobody expected is one line for the user, and a file for who mends it."""

import os
import tempfile
import traceback
from contextlib import suppress

from afina.core.errors import AfinaError, OutOfMemory, Unexpected, brief


def explained(error: BaseException) -> AfinaError:
    """What is told of an error that is none of Afina's own; its trace is written to a file of this user's."""
    if isinstance(error, MemoryError):
        return OutOfMemory("there is not enough memory", "close other programs, or give it less to do at once")
    what = f"unexpected {type(error).__name__}: {brief(error)}"
    path = ""
    try:
        handle, path = tempfile.mkstemp(prefix="afina-error-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError as second:
        with suppress(OSError):
            os.remove(path)
        return Unexpected(f"{what} (its trace could not be written: {brief(second)})", "report it with the command")
    return Unexpected(f"{what} (its trace is in {path})", "report it with that file")
