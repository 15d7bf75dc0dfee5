"""Arrow's file format, or its stream (in which the hub's library keeps data sets)."""

from collections.abc import Iterator
from typing import Any

from afina.data.files import File, unreadable
from afina.data.formats import Format
from afina.data.formats._classes import schema_features
from afina.data.rows import Notes, Record, Rejected
from afina.data.settings import DataSettings

_MAGIC = b"ARROW1"


def _read(file: File, settings: DataSettings, notes: Notes) -> Iterator[Record | Rejected]:
    import pyarrow

    try:
        with file.open() as content:
            is_file = content.read(len(_MAGIC)) == _MAGIC
            content.seek(0)
            if is_file:
                reader = pyarrow.ipc.open_file(content)
                file.features = schema_features(reader.schema.metadata) or file.features
                yield from records(file, (reader.get_batch(i) for i in range(reader.num_record_batches)))
            else:
                stream = pyarrow.ipc.open_stream(content)
                file.features = schema_features(stream.schema.metadata) or file.features
                yield from records(file, stream)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise unreadable(file.name, error) from error


def records(file: File, batches: Any) -> Iterator[Record]:
    """The rows of Arrow's record batches."""
    number = 0
    for batch in batches:
        for values in batch.to_pylist():
            number += 1
            yield Record(values, f"{file.name}, row {number}")


FORMAT = Format("arrow", _read, (".arrow",), (".feather",), signature=lambda start, suffix: start.startswith(_MAGIC))
