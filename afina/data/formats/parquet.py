"""Parquet, a thousand rows at a time."""

from collections.abc import Iterator

from afina.data.files import File, unreadable
from afina.data.formats import Format
from afina.data.formats.arrow import records
from afina.data.rows import Notes, Record, Rejected
from afina.data.settings import DataSettings


def _read(file: File, settings: DataSettings, notes: Notes) -> Iterator[Record | Rejected]:
    import pyarrow
    import pyarrow.parquet

    try:
        with file.open() as content:
            yield from records(file, pyarrow.parquet.ParquetFile(content).iter_batches(1024))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise unreadable(file.name, error) from error


FORMAT = Format("parquet", _read, (".parquet",), signature=lambda start, suffix: start.startswith(b"PAR1"))
