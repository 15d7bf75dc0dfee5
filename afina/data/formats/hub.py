"""Data sets of the Hugging Face Hub, owner/name or owner/name:config:split, streamed."""

import re
from collections.abc import Iterator
from pathlib import Path

from afina.core.errors import DataError
from afina.data.files import File
from afina.data.formats import Format
from afina.data.rows import Notes, Record, Rejected
from afina.data.settings import DataSettings


def _claims(settings: DataSettings) -> bool:
    """A name of that form, where there is no such file."""
    path = settings.path
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]*){0,2}", str(path))) and not (
        path.exists()
        or path.parent.exists()
        or Path(str(path).split(":")[0]).suffix in (".jsonl", ".json", ".csv", ".tsv", ".txt")
    )


def _read(file: File, settings: DataSettings, notes: Notes) -> Iterator[Record | Rejected]:
    import datasets

    name, config, split = (*file.name.split(":"), "", "")[:3]
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        file.features = rows.features.to_dict() if rows.features else None
        for number, values in enumerate(rows, 1):
            yield Record(dict(values), f"{name}, row {number}")
    except Exception as error:  # whatever the hub, its files or the network cause
        raise DataError(
            f"data set {name!r} cannot be loaded: {str(error).splitlines()[0][:200]}",
            "give it as owner/name:config:split, or check the path if it is a file",
        ) from error


FORMAT = Format("hub", _read, claims=_claims, package=("datasets", "hub"), local=False)
