"""Weights of a folder in transformers' format: one safetensors file, or several with an index."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from afina.core.errors import BaseModelError, InputError, brief
from afina.core.files import read_json
from afina.engine.blocks import Blocks, Packing, as_read
from afina.engine.families import Architecture

# Constants that some checkpoints store although every program computes them: masks and rotary frequencies.
_COMPUTED = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq")

_AT_ONCE = 128 << 20  # bytes of a file that are mapped at one time
_RENAMED = {"embed_out.weight": "lm_head.weight"}  # in GPT-NeoX's files, and in the model


def read(folder: Path, arch: Architecture, dtype: torch.dtype, packed: Packing = as_read) -> dict[str, Tensor | Blocks]:
    """All weights in `folder` by transformers' names, in `dtype` and then as `packed` has them, in memory of their own.

    Raises `BaseModelError`.
    """
    found: dict[str, Tensor | Blocks] = {}
    names: dict[Path, list[str]] = {}
    path = folder
    try:
        for path in _files(folder):
            names[path] = _names(path)
        root = arch.names.embedding.split(".")[0] + "."
        bare = not any(name.startswith(root) for each in names.values() for name in each)  # saved without its head
        for path, each in names.items():
            for stored, tensor in _tensors(path, each):
                name = _RENAMED.get(stored, stored)
                name = root + name if bare and not name.startswith(arch.names.head) else name
                found[name] = packed(name, tensor.to(dtype, copy=True))
    except (OSError, SafetensorError) as error:
        raise BaseModelError(
            f"{path}: the weights cannot be loaded ({str(error).splitlines()[0][:200]})", "download it again"
        ) from error
    return found


def readable(path: Path) -> bool:
    """True; raises `BaseModelError` where the header of a safetensors file is not whole."""
    try:
        _names(path)
    except (OSError, SafetensorError) as error:
        raise BaseModelError(f"{path}: its header cannot be read ({brief(error)})", "download it again") from error
    return True


def _names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return [name for name in file.keys() if not name.endswith(_COMPUTED)]  # noqa: SIM118 - not a dict


def _tensors(path: Path, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Views of the file's tensors. Pages of a memory map stay with the process as long as any tensor is a view of it, beside
    the joined products' own rows (linear.py), so the map is left, and made anew, after every so many bytes."""
    left = list(names)
    while left:
        read = 0
        with safe_open(path, framework="pt") as file:
            while left and read < _AT_ONCE:
                name = left.pop()
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
            "the folder needs whole *.safetensors files that fit its config.json",
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
