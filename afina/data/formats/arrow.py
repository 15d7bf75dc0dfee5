"""Arrow's file format, or its stream (in which the hub's library keeps data sets)."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from afina.core.errors import DataError, counted
from afina.core.limits import BATCH_BYTES, COLUMNS, ROW_BYTES, UNPACKED_BYTES, UNPACKED_RATIO
from afina.core.limits.process import bounded
from afina.data.files import File, expands, reading_data
from afina.data.formats import Format
from afina.data.formats._classes import schema_features
from afina.data.formats._json import row_of
from afina.data.rows import Notes, Record, Rejected
from afina.data.settings import DataSettings

_MAGIC = b"ARROW1"


_AT_ONCE = 1024  # rows that become Python's


def library() -> Any:
    """pyarrow, once it has its memory: its allocator reserves a gigabyte before it gives a byte, which would count
    against the limit on what a table may take."""
    import pyarrow

    pyarrow.allocate_buffer(1 << 16)
    return pyarrow


def _read(file: File, settings: DataSettings, notes: Notes) -> Iterator[Record | Rejected]:
    pyarrow = library()
    with reading_data(file.name), file.open() as content:
        is_file = content.read(len(_MAGIC)) == _MAGIC
        content.seek(0)
        if is_file:
            reader = pyarrow.ipc.open_file(content)
            yield from records(file, reader.schema, (reader.get_batch(i) for i in range(reader.num_record_batches)))
        else:
            stream = pyarrow.ipc.open_stream(content)
            yield from records(file, stream.schema, stream)


def records(file: File, schema: Any, batches: Iterable[Any]) -> Iterator[Record | Rejected]:
    """The rows of Arrow's record batches. Raises `DataError` for columns or bytes beyond what data have."""
    if len(schema) > COLUMNS:
        raise DataError(f"{file.name} has {counted(len(schema), 'column')}", f"{COLUMNS:,} are read: leave some out")
    file.features = schema_features(schema.metadata) or file.features
    number = unpacked = 0
    remaining = iter(batches)
    while (batch := _limited(lambda: next(remaining, None))) is not None:
        batch.validate(full=True)  # offsets that lead elsewhere are read as they are
        unpacked += max(batch.nbytes, ROW_BYTES * batch.num_rows)
        check_unpacked(file, unpacked)
        for start in range(0, batch.num_rows, _AT_ONCE):
            part = batch.slice(start, _AT_ONCE)
            for values in _limited(part.to_pylist):
                number += 1
                yield row_of(values, f"{file.name}, row {number}")


def check_unpacked(file: File, unpacked: int) -> None:
    """Raises `DataError` where a file says far more than it holds."""
    if unpacked > UNPACKED_BYTES and unpacked > UNPACKED_RATIO * file.path.stat().st_size:
        raise expands(file.name, UNPACKED_RATIO)


def _limited(work: Callable[[], Any]) -> Any:
    with bounded(math.inf, BATCH_BYTES):
        return work()


FORMAT = Format("arrow", _read, (".arrow",), (".feather",), signature=lambda start, suffix: start.startswith(_MAGIC))
