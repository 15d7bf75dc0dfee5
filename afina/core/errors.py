"""Every error that Afina raises on purpose.

AfinaError
├── InputError            exit 2: something given to us is wrong; nothing was changed
│   ├── SettingsError     a flag, a key of a configuration file, or a combination of them
│   ├── DataError         a file of examples
│   │   ├── Unmapped      a file whose columns do not say what is asked and what is answered
│   │   ├── NoTable       a file whose first bytes are those of a picture, an archive, a program …
│   │   └── TooLong       rows of more tokens than the base can read, or than was allowed
│   ├── BaseModelError    a base model that is missing, damaged or not supported
│   ├── AdapterError      an adapter or run folder that does not fit
│   ├── NonFiniteLogits   a model whose logits are NaN or infinite, so that no answer of it means anything
│   └── OutputError       a place that cannot be written
├── RunFailed             exit 1: a run was started and failed
│   ├── NonFiniteLoss     the loss became NaN or infinite
│   ├── OutOfMemory       a micro-batch needs more memory than there is
│   ├── NothingTrains     no gradient reaches the adapter
│   ├── VerificationFailed  the adapter on disk is not the adapter that was trained
│   └── Unexpected        a bug of ours, or what a library raised; the trace is in a file
└── Interrupted           exit 130: Ctrl-C; what was finished is kept

Each keeps what is wrong in `problems`, and what to do about it in `remedy`.
"""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from afina.core.text import shell_word

_VERBS = {"is": "are", "has": "have", "was": "were", "seems": "seem"}  # of two words that `counted` makes plural


def counted(count: int, one: str, several: str = "") -> str:
    """'1 row', '2 rows', '1,000 rows'; of 'row is' '1 row is', '2 rows are'. `several` where it is made otherwise."""
    noun, _, verb = one.rpartition(" ")
    regular = f"{noun}s {_VERBS[verb]}" if verb in _VERBS else f"{one}s"
    return f"{count:,} {one if count == 1 else several or regular}"


def enumerated(names: Sequence[str], most: int = 20) -> str:
    """'a, b and 3 more': the first names, and how many there are beyond."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def brief(error: BaseException) -> str:
    """Another library's message on one line, of 200 characters at most."""
    said = " ".join(str(error).split())[:200]
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    return f"{type(error).__name__}: {said}".removesuffix(": ") if isinstance(error, KeyError) or not said else said


def shortened(value: Any, most: int = 80) -> str:
    """A value as it is shown in a message, of `most` characters."""
    shown = repr(value[:most] if isinstance(value, str | list | tuple) else value)
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


class AfinaError(Exception):
    """The root of all. `str(error)` is the whole message for the user.

    `problems` say what is wrong, where, and what was expected; `remedy` says what to do, where something can be done.
    """

    exit_code = 1

    def __init__(self, problem: str | Sequence[str], remedy: str = "") -> None:
        """`problem` is one problem or several; `str(error)` then has one on each line."""
        self.problems = [problem] if isinstance(problem, str) else list(problem)
        self.remedy = remedy
        several = f"{len(self.problems)} problems:\n  " + "\n  ".join(self.problems)
        text = self.problems[0] if len(self.problems) == 1 else several
        super().__init__(f"{text}\n  → {remedy}" if remedy else text)

    def json(self) -> dict[str, Any]:
        """The object that `--json` prints in the place of a result."""
        return {"error": {"problems": self.problems, "remedy": self.remedy}}


class InputError(AfinaError):
    exit_code = 2


class SettingsError(InputError): ...


class DataError(InputError): ...


class Unmapped(DataError):
    """`summary` is the problem without the lines on each of the `columns`. `mapping` are settings of data, by name,
    that may say what is asked and what is answered; where no `task` is given, they only show the shape."""

    def __init__(
        self,
        problem: str | Sequence[str],
        remedy: str = "",
        *,
        columns: Sequence[str] = (),
        mapping: dict[str, str] | None = None,
        task: str | None = None,
    ) -> None:
        self.columns, self.mapping, self.task = columns, mapping or {}, task
        flags = " ".join(f"--{name} {shell_word(value)}" for name, value in self.mapping.items())
        problems = [problem] if isinstance(problem, str) else list(problem)
        self.summary = problems[0]
        problems[0] = "\n    ".join([self.summary, *columns])
        super().__init__(problems, remedy or (f"say it with {flags}" if flags else ""))

    def json(self) -> dict[str, Any]:
        suggestion = {"task": self.task, **self.mapping} if self.task else None
        return {"error": {**super().json()["error"], "suggestion": suggestion}}


class NoTable(DataError): ...


class TooLong(DataError): ...


class BaseModelError(InputError): ...


class AdapterError(InputError): ...


class NonFiniteLogits(InputError): ...


class OutputError(InputError): ...


class RunFailed(AfinaError): ...


class NonFiniteLoss(RunFailed): ...


class OutOfMemory(RunFailed): ...


class NothingTrains(RunFailed): ...


class VerificationFailed(RunFailed): ...


class Unexpected(RunFailed):
    """On one line."""

    def __str__(self) -> str:
        return f"{self.problems[0]}: {self.remedy}"


class Interrupted(AfinaError):
    exit_code = 130


def near(name: str, known: Sequence[str]) -> str:
    """' Did you mean a, b?' for names that look like `name` (capitals are as good as others), or an empty string."""
    spelled = {each.casefold(): each for each in reversed(known)} | {each: each for each in known}
    matches = list(dict.fromkeys(spelled[each] for each in get_close_matches(name.casefold(), spelled, 3, 0.5)))
    return f" Did you mean {', '.join(repr(m) for m in matches)}?" if matches else ""


_REASONS = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would exceed the size limit",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "it is a folder, not a file",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EEXIST: "a file is in the way",
}


@contextmanager
def reading(what: str, error: type[InputError], remedy: str) -> Iterator[None]:
    """Turns whatever a library raises inside the block, where it reads something from outside, into one `error` that
    says `what` could not be read, the library's reason, and the `remedy`."""
    try:
        yield
    except AfinaError:
        raise
    except BaseException as problem:
        # Code in Rust that gives up raises what is no Exception.
        if not isinstance(problem, Exception) and type(problem).__name__ != "PanicException":
            raise
        if isinstance(problem, UnicodeEncodeError):  # libraries open no file of such a name
            remedy = "rename the file or its folders: their names are no Unicode"
        raise error(f"{what} ({brief(problem)})", remedy) from problem


@contextmanager
def writing(path: Path | str, remedy: str | None = None) -> Iterator[None]:
    """Turns an `OSError` inside the block into an `OutputError` that names `path`, the cause and the `remedy`, by
    default one for the cause.

    A reader that has closed our output (`| head`) is no error: `BrokenPipeError` goes through.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = remedy or ("free some space, or write somewhere else" if full else "write somewhere else")
        raise OutputError(f"cannot write {path}: {reason}", remedy) from error
