"""A GGUF file as it is written: its head first, then each tensor to its place, in any order."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from afina.core.errors import OutputError, SettingsError, writing
from afina.core.layers import not_finite
from afina.core.process.temporary import replacing
from afina.engine.ops.quantise import bytes_of, quantised
from afina.models.formats.gguf import GGUF
from afina.serving.gguf.facts import Metadata
from afina.serving.gguf.types import padded

_AT_ONCE = 1 << 22  # numbers of a tensor that are brought into its type at one time
_LARGEST = 65504.0  # of fp16, in which the scales of blocks are too


@dataclass(frozen=True)
class Head:
    """What stands before the tensors: metadata by key, and by the tensors' names their types and their shapes,
    outermost dimension first. `kinds` are, by key, the kind of a value and of an array's items, as `GGUFValueType`,
    where they are not the usual ones."""

    architecture: str
    metadata: Metadata
    types: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    kinds: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)

    def bytes_of(self, name: str) -> int:
        return bytes_of(prod(self.shapes[name]), self.types[name])


class Writing:
    """A file with its head written, and room for the tensors."""

    def __init__(self, path: Path, file: BinaryIO, start: int, head: Head) -> None:
        self._path, self._file, self._head = path, file, head
        self._places, at = {}, start
        for name in head.shapes:
            self._places[name] = at
            at += padded(head.bytes_of(name))
        file.truncate(at)
        self._left = set(head.shapes)

    def so_far(self) -> GGUF:
        """The file, to be read; tensors that were not put yet are zero."""
        self._file.flush()
        return GGUF(self._path)

    def put(self, name: str, tensor: Tensor) -> None:
        """Writes a tensor, of any dtype, in its type. Raises `SettingsError` where it holds numbers that are not finite
        or too large for the type."""
        if tuple(tensor.shape) != self._head.shapes[name]:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, the head says {self._head.shapes[name]}")
        self._left.remove(name)
        type = self._head.types[name]
        rows = tensor.detach().reshape(-1, tensor.shape[-1])
        self._file.seek(self._places[name])
        count = max(1, _AT_ONCE // rows.shape[1])
        for part in rows.split(count):
            _check(name, part, type)
            self._file.write(quantised(part, type).tobytes())

    def finish(self) -> None:
        """Raises `ValueError` where a tensor was not written."""
        if self._left:
            raise ValueError(f"not written: {', '.join(sorted(self._left)[:3])}")
        self._file.flush()


def _check(name: str, part: Tensor, type: str) -> None:
    if not_finite({name: part}):
        raise SettingsError(f"{name} holds numbers that are not finite (NaN or infinity)", "use another checkpoint")
    largest = float(part.abs().max()) if part.numel() else 0.0
    if type not in ("F32", "BF16") and largest > _LARGEST:
        raise SettingsError(
            f"{type} holds numbers up to {_LARGEST:g}, and {name} has {largest:g}", "write the file as BF16 or F32"
        )


@contextmanager
def opened(path: Path, head: Head) -> Iterator[Writing]:
    """A file that takes the name `path` when the block ends well, and all its tensors were put. Raises
    `OutputError`."""
    with writing(path), replacing(path) as temporary:
        if temporary == path:
            raise OutputError(f"cannot write {path}: it is no regular file", "give a file's name")
        _write_head(temporary, head)
        start = padded(temporary.stat().st_size)
        with temporary.open("r+b") as file:
            out = Writing(temporary, file, start, head)
            yield out
            out.finish()


def _write_head(path: Path, head: Head) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, head.architecture)
    for key, value in head.metadata.items():
        if isinstance(value, list) and not value:
            continue  # an empty array cannot be written, and says nothing
        kind, item = head.kinds.get(key, (_kind(value), None))
        writer.add_key_value(key, value, gguf.GGUFValueType(kind), None if item is None else gguf.GGUFValueType(item))
    for name, shape in head.shapes.items():
        type = gguf.GGMLQuantizationType[head.types[name]]
        writer.add_tensor_info(name, shape, np.dtype(np.float32), head.bytes_of(name), raw_dtype=type)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _kind(value: Any) -> Any:
    from gguf import GGUFValueType

    if isinstance(value, list):
        return GGUFValueType.ARRAY
    kinds = {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32}
    return kinds.get(type(value), GGUFValueType.STRING)
