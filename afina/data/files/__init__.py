"""Files of rows as people have them, opened once.

Comes in: a path. Goes out: a `File`: its bytes, unpacked, its hash, and its text in whatever encoding it is.
Public: `File`, `Encoding`, `known_encoding`, `unreadable` (what is said of a damaged one), `COMPRESSED` (suffixes),
`STANDARD_INPUT`."""

from afina.data.files.encodings import Encoding, known_encoding
from afina.data.files.file import COMPRESSED, STANDARD_INPUT, File, unreadable

__all__ = ["COMPRESSED", "STANDARD_INPUT", "Encoding", "File", "known_encoding", "unreadable"]
