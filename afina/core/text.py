"""Text that people see: what others wrote does nothing on a terminal, commands can be typed, JSON is pure."""

import json
import math
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast

# Controls of both ranges but newline and tab, what turns the direction of writing, halves of characters.
_ACTING = "\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_ACTS = re.compile(f"[{_ACTING}]")
_NOT_ASCII = re.compile(r"[^\0-\x7f]+")
_BREAKS = re.compile(r"[\n\t]")
_OF_PROGRESS_BARS = re.compile(f"\r|\x1b\\[A|([{_ACTING}])")  # libraries' own go back and up to be drawn again


def visible(text: str) -> str:
    """`text` with a mark (`\\x1b`, `\\u202e`) for each character that would act on the terminal that shows it."""
    return _ACTS.sub(_mark, text)


def _mark(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]


def lowered(text: str) -> str:
    """The text as it goes on after a colon: without a capital at its beginning, unless it begins with a word of
    capitals."""
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text


def shell_word(text: str) -> str:
    """`text` as it is typed in a shell: on one line, with line breaks and what acts on a terminal as in `$'…\\n…'`, and
    so are letters that standard output cannot hold, as the bytes that names of files have."""
    is_held = _is_held(text)
    if is_held and not _BREAKS.search(text) and not _ACTS.search(text):
        return shlex.quote(text)
    quoted = _BREAKS.sub(_mark, text.replace("\\", r"\\").replace("'", r"\'"))
    quoted = _ACTS.sub(_escape, quoted)
    return f"$'{quoted if is_held else _NOT_ASCII.sub(_octets, quoted)}'"


def _is_held(text: str) -> bool:
    """Whether standard output can hold all letters of `text`."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8", "surrogatepass")
        return True
    except (UnicodeError, LookupError):
        return text.isascii()


def _octets(found: re.Match[str]) -> str:
    return "".join(f"\\x{byte:02x}" for byte in found[0].encode())


def command_line(*words: object) -> str:
    """A command of Afina's as it is typed, whatever is in its words."""
    return " ".join(["afina", *(shell_word(str(word)) for word in words)])


def json_text(value: Any, encoding: str | None = "utf-8") -> str:
    """`value` as one line of JSON that any reader takes: what would act on a terminal is escaped, so is all but ASCII
    where `encoding` is not JSON's own, UTF-8, and a number that is none is null."""
    ascii_only = (encoding or "utf-8").lower() not in ("utf-8", "utf8")
    try:
        text = json.dumps(value, ensure_ascii=ascii_only, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=ascii_only, allow_nan=False)
    return _ACTS.sub(_escape, text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"  # all that act are of the first plane


class _Shown:
    """A stream that shows what is written to it; `inner` is the stream itself, for what may act on a terminal."""

    def __init__(self, inner: TextIO, bars: bool) -> None:
        self.inner, self._bars = inner, bars

    def write(self, text: str) -> int:
        shown = _OF_PROGRESS_BARS.sub(lambda m: _mark(m) if m[1] else m[0], text) if self._bars else visible(text)
        return self.inner.write(shown)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def inner(stream: TextIO) -> TextIO:
    """The stream behind one of `shown_streams`."""
    return stream.inner if isinstance(stream, _Shown) else stream


@contextmanager
def shown_streams(out: TextIO, err: TextIO) -> Iterator[None]:
    """Inside the block standard output and error, whoever writes to them, show text instead of obeying it, and a letter
    that they cannot hold is replaced."""
    for stream in (out, err):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace" if stream is out else "backslashreplace")
    with redirect_stdout(cast(TextIO, _Shown(out, False))), redirect_stderr(cast(TextIO, _Shown(err, True))):
        yield
