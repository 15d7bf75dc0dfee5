"""Reads a GGUF file: metadata, and tensors, dequantised (types of `engine.formats` there, others by the `gguf`
package), or in their blocks.

The header is parsed here because the package's own reader takes seconds for a vocabulary of 50,000 tokens.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from afina.core.device import HOST
from afina.core.errors import BaseModelError, reading
from afina.core.files import check_regular
from afina.engine.blocks import GGML_FORMATS, Blocks
from afina.engine.formats import numbers_of
from afina.models.formats.checks import check_numbers

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LARGEST_ALIGNMENT = 1 << 16
_WHOLE = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}  # ggml's numbers of what is not in blocks
# Where the scales of a block lie, in fp16, by the formats of GGML_FORMATS: bytes from the first to before the last.
_SCALES = {
    2: (0, 2),
    3: (0, 4),
    6: (0, 2),
    7: (0, 4),
    8: (0, 2),
    10: (80, 84),
    11: (108, 110),
    12: (0, 4),
    13: (0, 4),
    14: (208, 210),
}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in the file: `shape` outermost dimension first, `kind` a `GGMLQuantizationType`, `offset` in bytes."""

    shape: tuple[int, ...]
    kind: int
    offset: int


def read_gguf(path: Path) -> "GGUF":
    """The file, parsed once for as long as it stays as it is: a vocabulary takes a while. Raises `BaseModelError`."""
    check_regular(path, BaseModelError)
    with reading(f"cannot read {path}", BaseModelError, "check the path"):
        found = path.stat()
    return _parsed(path, (found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(2)
def _parsed(path: Path, version: Any) -> "GGUF":
    return GGUF(path)


class GGUF:
    """`metadata` and `tensors` (name → TensorInfo) of the file at `path`; `kinds` are the metadata's, as
    `GGUFValueType`, with that of an array's items. Raises `BaseModelError` if the file is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        self.kinds: dict[str, tuple[int, int | None]] = {}
        self.tensors: dict[str, TensorInfo] = {}
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._parse()
        except (
            struct.error,
            ValueError,
            KeyError,
            UnicodeDecodeError,
            OSError,
            MemoryError,
            OverflowError,
            RecursionError,
        ) as error:
            raise BaseModelError(f"{path} is not a complete GGUF file ({error})", "download it again") from error

    def _parse(self) -> None:
        if self._map[:4] != b"GGUF":
            raise ValueError("it does not begin with 'GGUF'")
        self._at = 4
        version, tensors, pairs = self._take("<IQQ")
        if version not in (2, 3):
            raise ValueError(f"version {version}; 2 and 3 are read")
        for _ in range(pairs):
            key = self._string()
            (kind,) = self._take("<I")
            item = struct.unpack_from("<I", self._map, self._at)[0] if kind == _ARRAY else None
            self.kinds[key], self.metadata[key] = (kind, item), self._value(kind)
        found = []
        for _ in range(tensors):
            name = self._string()
            (n,) = self._take("<I")
            shape = self._take(f"<{n}Q")
            kind, offset = self._take("<IQ")
            found.append((name, tuple(reversed(shape)), kind, offset))
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= _LARGEST_ALIGNMENT:
            raise ValueError(f"its tensors are aligned to {alignment!r} bytes")
        start = -(-self._at // alignment) * alignment
        self.tensors = {name: TensorInfo(shape, kind, start + offset) for name, shape, kind, offset in found}

    def _take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self._map, self._at)
        self._at += struct.calcsize(layout)
        return values

    def _string(self) -> str:
        (length,) = self._take("<Q")
        if self._at + length > len(self._map):
            raise ValueError("a string runs past the end")
        text = self._map[self._at : self._at + length].decode("utf-8")
        self._at += length
        return text

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            item, count = self._take("<IQ")
            if item in _SCALARS:
                return list(self._take(f"<{count}{_SCALARS[item]}"))
            return [self._value(item) for _ in range(count)]
        return self._take(f"<{_SCALARS[kind]}")[0]

    def tensor(self, name: str, device: torch.device = HOST) -> torch.Tensor:
        """The tensor in fp32, on `device`, where it is dequantised too. Raises `BaseModelError` where the file is
        damaged."""
        info, raw = self.tensors[name], self._raw(name)
        if info.kind in _WHOLE:
            return torch.from_numpy(raw.copy()).to(device).view(_WHOLE[info.kind]).float()
        if info.kind in GGML_FORMATS:
            return numbers_of(torch.from_numpy(raw.copy()).to(device), info.kind)
        from gguf import GGMLQuantizationType, dequantize

        with np.errstate(invalid="ignore"):  # what is not finite is told by its name, once all is read
            values = dequantize(raw, GGMLQuantizationType(info.kind))
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(device)

    def blocks(self, name: str, dtype: torch.dtype, device: torch.device = HOST) -> Blocks | None:
        """The matrix in the file's blocks, on `device`; None where the tensor is no matrix, or not quantised. Raises
        as `tensor` does."""
        info = self.tensors[name]
        if info.kind not in GGML_FORMATS or len(info.shape) != 2:
            return None
        raw = torch.from_numpy(self._raw(name).copy()).to(device)
        first, last = _SCALES[info.kind]
        scales = raw.unflatten(1, (-1, GGML_FORMATS[info.kind][2]))[..., first:last]
        check_numbers(self.path, {name: scales.contiguous().view(torch.float16)})
        return Blocks(raw, info.kind, info.shape[1], dtype)

    def stored_dtype(self) -> torch.dtype:
        """The dtype of most of the numbers; bf16 for those in blocks, which have none."""
        numbers: Counter[int] = Counter()
        for info in self.tensors.values():
            numbers[info.kind] += prod(info.shape)
        kinds = {0: torch.float32, 1: torch.float16}
        return kinds.get(numbers.most_common(1)[0][0], torch.bfloat16)

    def _raw(self, name: str) -> Any:
        """The bytes of a tensor: (…, row_bytes)."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        info = self.tensors[name]
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(info.kind)]
        except ValueError:
            raise BaseModelError(
                f"{self.path}: {name} is of an unknown type, {info.kind}", "download it again"
            ) from None
        if not info.shape or info.shape[-1] % block:
            raise BaseModelError(
                f"{self.path}: {name} has shape {info.shape}, which blocks of {block} cannot fill", "download it again"
            )
        row_bytes = info.shape[-1] // block * block_bytes
        size = row_bytes * prod(info.shape[:-1])
        raw = np.frombuffer(self._map, np.uint8, count=-1)[info.offset : info.offset + size]
        if raw.size != size:
            raise BaseModelError(f"{self.path} ends inside the tensor {name}", "download it again")
        return raw.reshape(*info.shape[:-1], row_bytes)
