"""What formats of text share: characters and lines of a file in any encoding, and what is said of that encoding."""

import itertools
from collections.abc import Iterable, Iterator

from afina.core.errors import DataError, counted
from afina.core.limits import RECORD_CHARACTERS
from afina.data.files import File, reading_data
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
        notes.doubt(f"{file.name}: {encoding.doubt}", REMEDY, "encoding")
    if encoding.nuls:
        notes.say(f"{file.name}: {counted(encoding.nuls, 'NUL byte is')} left out")


def characters(file: File) -> Iterator[str]:
    """The text in pieces, without NUL characters."""
    with file.text() as text:
        while True:
            with reading_data(file.name):
                chunk = text.read(_CHUNK)
            if not chunk:
                return
            yield chunk.replace("\0", "")


def lines(file: File) -> Iterator[str]:
    """The lines of a text. Only line feeds end one: others, such as U+2028, may occur inside JSON's strings. Raises
    `DataError` for one that is longer than any row."""
    return lines_of(file.name, characters(file))


def lines_of(name: str, *pieces: Iterable[str]) -> Iterator[str]:
    """`lines` of a text that comes in pieces."""
    rest, number = "", 1
    for chunk in itertools.chain(*pieces):
        *complete, rest = (rest + chunk).split("\n")
        yield from complete
        number += len(complete)
        if len(rest) > RECORD_CHARACTERS:
            raise too_long(f"{name}:{number}")
    yield rest


def too_long(where: str, most: int = RECORD_CHARACTERS) -> DataError:
    """What is said of a row or a line that is longer than any that a model could read."""
    return DataError(
        f"{where}: more than {most:,} characters without an end, which is no row",
        "check that the file is what its name says, and divide what is longer",
    )
