"""Parquet, a thousand rows at a time."""

from collections.abc import Iterator

from afina.core.limits import ROW_BYTES
from afina.data.files import File, reading_data
from afina.data.formats import Format
from afina.data.formats.arrow import check_unpacked, library, records
from afina.data.rows import Notes, Record, Rejected
from afina.data.settings import DataSettings


def _read(file: File, settings: DataSettings, notes: Notes) -> Iterator[Record | Rejected]:
    library()
    from pyarrow.parquet import ParquetFile

    with reading_data(file.name), file.open() as content:
        table = ParquetFile(content)
        check_unpacked(file, ROW_BYTES * table.metadata.num_rows)
        yield from records(file, table.schema_arrow, table.iter_batches(1024))


FORMAT = Format("parquet", _read, (".parquet",), signature=lambda start, suffix: start.startswith(b"PAR1"))
