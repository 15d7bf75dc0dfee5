"""Two text files whose lines answer one another (`settings.target`), as the columns `source` and `target`."""

from collections.abc import Iterator

from afina.core.errors import DataError, counted
from afina.data.files import File
from afina.data.formats import Format
from afina.data.formats._text import lines, note_encoding
from afina.data.rows import Notes, Record, Rejected
from afina.data.settings import DataSettings

_REMEDY = "lines must answer one another, one to one"


def _read(file: File, settings: DataSettings, notes: Notes) -> Iterator[Record | Rejected]:
    other = file.target
    assert other is not None
    for each in (file, other):
        note_encoding(each, notes)
    answers = lines(other)
    number = 0
    for number, line in enumerate(lines(file), 1):
        answer = next(answers, None)
        if answer is None:
            raise DataError(f"{other.name} has {counted(number - 1, 'line')}, {file.name} has more", _REMEDY)
        if line.strip() or answer.strip():
            yield Record({"source": line.rstrip("\r"), "target": answer.rstrip("\r")}, f"{file.name}:{number}")
    if any(rest.strip() for rest in answers):
        raise DataError(f"{file.name} has {counted(number, 'line')}, {other.name} has more", _REMEDY)


FORMAT = Format("parallel text", _read, claims=lambda settings: settings.target is not None)
