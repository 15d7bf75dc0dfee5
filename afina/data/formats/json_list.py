"""JSON: a list of objects, read item by item, or one object that holds the rows, which is read as a whole."""

from collections.abc import Iterator

from afina.data.files import File
from afina.data.formats import Format
from afina.data.formats._json import read_json
from afina.data.rows import Notes, Record, Rejected
from afina.data.settings import DataSettings


def _read(file: File, settings: DataSettings, notes: Notes) -> Iterator[Record | Rejected]:
    return read_json(file, notes, one_row=False)


FORMAT = Format("json", _read, (".json",), resembles=lambda start: start[:1] == b"[")
