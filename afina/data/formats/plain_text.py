"""Plain text in the column `text`: a row is a line, a paragraph (empty lines between), or the whole file."""

from collections.abc import Iterator

from afina.data.files import STANDARD_INPUT, File
from afina.data.formats import Format
from afina.data.formats._text import lines, note_encoding
from afina.data.rows import Notes, Record, Rejected
from afina.data.settings import DataSettings


def _read(file: File, settings: DataSettings, notes: Notes) -> Iterator[Record | Rejected]:
    note_encoding(file, notes)
    unit, first, gathered = settings.text, 1, list[str]()
    for number, line in enumerate(lines(file), 1):
        line = line.rstrip("\r")
        if line.strip() or unit == "document":
            gathered.append(line)
        if gathered and (unit == "line" or (unit == "paragraph" and not line.strip())):
            yield Record({"text": "\n".join(gathered)}, f"{file.name}:{first}")
            gathered = []
        if not gathered:
            first = number + 1
    if any(line.strip() for line in gathered):
        yield Record({"text": "\n".join(gathered).strip("\n")}, f"{file.name}:{first}")


def _claims(settings: DataSettings) -> bool:
    """Standard input, which has no suffix, is text where the settings say what a row of text is."""
    return str(settings.path) == STANDARD_INPUT and settings.target is None and "text" in settings.model_fields_set


FORMAT = Format("text", _read, (".txt",), (".text", ".md"), claims=_claims)
