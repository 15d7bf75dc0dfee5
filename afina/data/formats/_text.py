"""What formats of text share: characters and lines of a file in any encoding, and what is said of that encoding."""

from collections.abc import Iterator

from afina.data.files import File, unreadable
from afina.data.rows import Notes

_CHUNK = 1 << 20  # characters
_USUAL = {"utf-8", "utf-8-sig"}


def note_encoding(file: File, notes: Notes) -> None:
    """Says how the file is read, where that is not as plain UTF-8. Raises `DataError` where it is no text."""
    encoding = file.encoding
    if encoding.name not in _USUAL:
        notes.say(f"{file.name} is read as {encoding.name.upper().replace('CP', 'Windows-')}, because it is not UTF-8")
    if encoding.name == "utf-8-sig":
        notes.say(f"{file.name} begins with a byte-order mark, which is left out")
    if encoding.nuls:
        notes.say(f"{file.name}: {encoding.nuls} NUL bytes are left out")


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
    rest = ""
    for chunk in characters(file):
        *complete, rest = (rest + chunk).split("\n")
        yield from complete
    yield rest
