"""Files of rows as people have them, opened once.

Comes in: a path. Goes out: a `File`: its bytes, unpacked, its hash, and its text in whatever encoding it is.
Public: `File`, `Encoding`, `known_encoding`, `reading_data` (around what reads a file), `expands` (what is said of one
that is packed beyond belief), `COMPRESSED` (suffixes), `STANDARD_INPUT`."""

from afina.data.files.encodings import Encoding, known_encoding
from afina.data.files.file import COMPRESSED, STANDARD_INPUT, File, expands, reading_data

__all__ = [
    "COMPRESSED",
    "STANDARD_INPUT",
    "Encoding",
    "File",
    "expands",
    "known_encoding",
    "reading_data",
]
