"""Class names that files, or the data set that they belong to, give for the numbers in their columns.

Of the hub's library: in the metadata of Arrow's and Parquet's schemas, in `dataset_info.json`, in a card.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from afina.data.files import File
from afina.data.rows import Notes, Record

_Naming = Callable[[Any], Any]
_SHOWN = 3


def schema_features(metadata: Mapping[bytes, bytes] | None) -> Any:
    """What the metadata of an Arrow schema say of its columns; None where they say nothing."""
    try:
        return json.loads((metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


class ClassNames:
    """Gives the records of a file the names of their classes."""

    def __init__(self, file: File, path: Any, notes: Notes) -> None:
        self._file, self._path, self._notes = file, path, notes
        self._features: Any = None
        self._columns: dict[str, _Naming] = {}

    def __call__(self, record: Record) -> Record:
        if self._file.features is not self._features:
            self._features = self._file.features
            self._columns = self._named(self._features)
        if not self._columns:
            return record
        named = {column: naming(record.values.get(column)) for column, naming in self._columns.items()}
        return Record(record.values | {c: v for c, v in named.items() if c in record.values}, record.location)

    def _named(self, features: Any) -> dict[str, _Naming]:
        if isinstance(features, list):  # a card's
            features = {each["name"]: each for each in features if isinstance(each, dict) and "name" in each}
        if not isinstance(features, dict):
            return {}
        found = {str(column): naming for column, feature in features.items() if (naming := _naming(feature))}
        for column in found:
            names = _first_names(features[column])
            shown = ", ".join(f"{i} is {name!r}" for i, name in enumerate(names[:_SHOWN]))
            more = " …" if len(names) > _SHOWN else ""
            self._notes.say(f"{self._path}: the numbers in {column!r} are read as their class names: {shown}{more}")
        return found


def _names(feature: Any) -> list[str]:
    """The names of a feature that is a class label."""
    if not isinstance(feature, dict):
        return []
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    dtype = feature.get("dtype")
    if isinstance(dtype, dict) and isinstance(dtype.get("class_label"), dict):
        names = dtype["class_label"].get("names")
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=int)] if all(str(key).isdecimal() for key in names) else None
    return [str(name) for name in names] if isinstance(names, list) else []


def _inner(feature: Any) -> Any:
    """What a feature of lists is a list of."""
    if isinstance(feature, list) and len(feature) == 1:
        return feature[0]
    if isinstance(feature, dict) and feature.get("_type") in ("Sequence", "List", "LargeList"):
        return feature.get("feature")
    return None


def _fields(feature: Any) -> dict[str, Any]:
    return feature if isinstance(feature, dict) and not isinstance(feature.get("_type"), str) else {}


def _first_names(feature: Any) -> list[str]:
    inner = _inner(feature)
    nested = [inner] if inner is not None else list(_fields(feature).values())
    return _names(feature) or next((found for each in nested if (found := _first_names(each))), [])


def _naming(feature: Any) -> _Naming | None:
    """What puts names in the place of numbers in a value; None where there are none."""
    if feature is None:
        return None
    if names := _names(feature):
        return partial(_name, names=names)
    if (inner := _naming(_inner(feature))) is not None:
        return partial(_items, naming=inner)
    if members := {key: naming for key, each in _fields(feature).items() if (naming := _naming(each))}:
        return partial(_members, namings=members)
    return None


def _name(value: Any, names: list[str]) -> Any:
    number = int(value) if isinstance(value, str) and value.removeprefix("-").isdecimal() else value
    if isinstance(number, int) and not isinstance(number, bool):
        return names[number] if 0 <= number < len(names) else None if number == -1 else value  # -1: it has no label
    return value


def _items(value: Any, naming: _Naming) -> Any:
    return [naming(item) for item in value] if isinstance(value, list) else value


def _members(value: Any, namings: Mapping[str, _Naming]) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: namings[key](item) if key in namings else item for key, item in value.items()}
