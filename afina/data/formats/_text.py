"""What formats of text share: characters and lines of a file in any encoding, and what is said of that encoding."""

import itertools
from collections.abc import Iterable, Iterator

from afina.core.errors import counted
from afina.data.files import File, unreadable
from afina.data.files.encodings import REMEDY
from afina.data.rows import Notes

_CHUNK = 1 << 20  # characters


def note_encoding(file: File, notes: Notes) -> None:
    """Says how the file is read, where that is not as plain UTF-8. Raises `DataError` where it is no text, or that is
    doubtful."""
    encoding = file.encoding
    if encoding.said:
        notes.say(f"{file.name} {encoding.said}")
    if encoding.doubt:
        notes.doubt(f"{file.name}: {encoding.doubt}", REMEDY)
    if encoding.nuls:
        notes.say(f"{file.name}: {counted(encoding.nuls, 'NUL byte is')} left out")


def characters(file: File) -> Iterator[str]:
    """The text in pieces, without NUL characters."""
    with file.text() as text:
        while True:
            try:
                chunk = text.read(_CHUNK)
            except (UnicodeError, OSError, EOFError, ValueError) as error:
                raise unreadable(file.name, error) from error
            if not chunk:
                return
            yield chunk.replace("\0", "")


def lines(file: File) -> Iterator[str]:
    """The lines of a text. Only line feeds end one: others, such as U+2028, may occur inside JSON's strings."""
    return lines_of(characters(file))


def lines_of(*pieces: Iterable[str]) -> Iterator[str]:
    """`lines` of a text that comes in pieces."""
    rest = ""
    for chunk in itertools.chain(*pieces):
        *complete, rest = (rest + chunk).split("\n")
        yield from complete
    yield rest
