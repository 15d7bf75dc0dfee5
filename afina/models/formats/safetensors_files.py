"""Weights of a folder in transformers' format: one safetensors file, or several with an index."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from afina.core.device import HOST
from afina.core.errors import BaseModelError, InputError, reading
from afina.core.files import read_json
from afina.engine.architecture import Architecture
from afina.engine.blocks import Blocks, Quantiser, full_precision
from afina.models.formats.checks import check_numbers

_AT_ONCE = 128 << 20  # bytes of a file that are mapped at one time


def read_weights(
    folder: Path, arch: Architecture, dtype: torch.dtype, quantiser: Quantiser = full_precision,
    device: torch.device = HOST,
) -> dict[str, Tensor | Blocks]:  # fmt: skip
    """All weights in `folder` by transformers' names, each in `dtype` and then as `quantiser` gives it, in memory
    of its own on `device`, where all this is done: one tensor at a time passes through the host.

    Raises `BaseModelError`.
    """
    found: dict[str, Tensor | Blocks] = {}
    names: dict[Path, list[str]] = {}
    for path in _files(folder):
        names[path] = [name for name in _names(path) if not name.endswith(arch.computed)]
    root = arch.names.embedding.split(".")[0] + "."
    bare = not any(name.startswith(root) for each in names.values() for name in each)  # saved without its head
    for path, each in names.items():
        for stored, tensor in _tensors(path, each):
            name = arch.renamed.get(stored, stored)
            name = root + name if bare and not name.startswith(arch.names.head) else name
            weight = quantiser(name, _checked(path, stored, tensor, dtype, device))
            found[name] = tensor.clone() if weight is tensor else weight  # the file's memory is let go
    return found


def _checked(path: Path, stored: str, tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    weight = tensor.to(device).to(dtype)  # first as it is in the file: torch would convert it before, on the host
    check_numbers(path, {stored: weight})
    return weight


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of most of the weights in `folder`; bf16 where they are quantised. Raises `BaseModelError`."""
    numbers: Counter[str] = Counter()
    for path in _files(folder):
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                part = file.get_slice(name)
                numbers[part.get_dtype()] += prod(part.get_shape())
    kinds = {"F32": torch.float32, "F64": torch.float32, "F16": torch.float16}
    return kinds.get(numbers.most_common(1)[0][0] if numbers else "", torch.bfloat16)


def check_header(path: Path) -> None:
    """Raises `BaseModelError` where the header of a safetensors file is damaged."""
    _names(path)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    what = f"{path}: the weights cannot be loaded"
    with reading(what, BaseModelError, "download it again"), safe_open(path, framework="pt") as file:
        yield file


def _names(path: Path) -> list[str]:
    with _opened(path) as file:
        return list(file.keys())


def _tensors(path: Path, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Views of the file's tensors. The pages of a memory map stay resident as long as any tensor is a view of it,
    beside the rows of joined products (engine/joined.py), so the file is mapped anew after every so many bytes."""
    remaining = list(names)
    while remaining:
        read = 0
        with _opened(path) as file:
            while remaining and read < _AT_ONCE:
                name = remaining.pop()
                tensor = file.get_tensor(name)
                read += tensor.nbytes
                yield name, tensor


def _files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise BaseModelError(
            f"{folder}: the weights cannot be loaded (there is no model.safetensors)",
            "the folder needs complete *.safetensors files that fit its config.json",
        )
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
        paths = [folder / name for name in names]
    except (InputError, KeyError, TypeError, AttributeError) as error:
        raise BaseModelError(f"{index} is damaged ({error})", "download it again") from error
    absent = [path.name for path in paths if not path.is_file() or path.parent != folder]
    if absent:
        raise BaseModelError(f"{folder} lacks {', '.join(absent[:3])}, which its index names", "download it again")
    return paths
