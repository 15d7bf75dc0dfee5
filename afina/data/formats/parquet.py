"""Parquet, a thousand rows at a time."""

from collections.abc import Iterator

from afina.data.files import File, unreadable
from afina.data.formats import Format
from afina.data.formats._classes import schema_features
from afina.data.formats.arrow import records
from afina.data.rows import Notes, Record, Rejected
from afina.data.settings import DataSettings


def _read(file: File, settings: DataSettings, notes: Notes) -> Iterator[Record | Rejected]:
    import pyarrow
    import pyarrow.parquet

    try:
        with file.open() as content:
            table = pyarrow.parquet.ParquetFile(content)
            file.features = schema_features(table.schema_arrow.metadata) or file.features
            yield from records(file, table.iter_batches(1024))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise unreadable(file.name, error) from error


FORMAT = Format("parquet", _read, (".parquet",), signature=lambda start, suffix: start.startswith(b"PAR1"))
