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
    number, blank = 0, dict[str, int]()  # the first line of each file that is blank where the other's is not
    for number, line in enumerate(lines(file), 1):
        answer = next(answers, None)
        if answer is None:
            raise DataError(f"{other.name} has {counted(number - 1, 'line')}, {file.name} has more", _REMEDY)
        if line.strip() or answer.strip():
            name = other.name if line.strip() else file.name
            if not (line.strip() and answer.strip()) and name not in blank:
                blank[name] = number
                if len(blank) == 2:
                    _doubt(blank, notes)
            yield Record({"source": line.rstrip("\r"), "target": answer.rstrip("\r")}, f"{file.name}:{number}")
    if any(rest.strip() for rest in answers):
        raise DataError(f"{file.name} has {counted(number, 'line')}, {other.name} has more", _REMEDY)


def _doubt(blank: dict[str, int], notes: Notes) -> None:
    """Where both have blank lines that the other has not, one line of text may stand beside another's translation."""
    (one, first), (other, second) = blank.items()
    notes.doubt(
        f"{one}:{first} is blank, and so is {other}:{second}, each where the other file has text: the lines between "
        "may not answer one another",
        "delete blank lines that only part paragraphs, and of a line without an answer both",
        "pairs",
    )


FORMAT = Format("parallel text", _read, claims=lambda settings: settings.target is not None)
