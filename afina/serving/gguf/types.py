"""The type of each tensor of a file, as llama-quantize picks it (https://github.com/ggml-org/llama.cpp,
src/llama-quant.cpp), and the bytes that they take."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from afina.core.errors import SettingsError, counted
from afina.engine.ops.quantise import bytes_of, numbers_in_block

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_1", "Q5_0", "Q4_K_M", "Q4_1", "Q4_0")
ALIGNMENT = 32  # bytes of which each tensor takes a multiple
_MOST = {"Q4_K_M": "Q4_K", "Q5_K_M": "Q5_K"}  # the type of most matrices of a mix
_WHOLE = ("F32", "F16", "BF16")
_INSTEAD = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # where rows do not fill blocks of 256
_WIDE_HEADS = 80  # layers of Llama 70B and its like, whose v is small and is given a bit more


@dataclass(frozen=True)
class TypePlan:
    """What a file of a `type` will hold: the type of each tensor by its name there, `fallbacks` in words where rows do
    not fill the blocks of the wanted type, `bytes` of all tensors in the file, and `notes` on what a program that reads
    it does otherwise than Afina."""

    type: str
    types: Mapping[str, str]
    fallbacks: tuple[str, ...]
    bytes: int
    notes: tuple[str, ...] = ()


def check_type(type: str) -> None:
    """Raises `SettingsError` where a file of the type cannot be asked for."""
    if type not in TYPES:
        raise SettingsError(f"GGUF files of type {type!r} are not written", f"choose from {', '.join(TYPES)}")


def plan_types(shapes: Mapping[str, tuple[int, ...]], type: str) -> TypePlan:
    """The types of tensors of these shapes, outermost dimension first, by their names in the file. Raises
    `SettingsError` for a type that is not in `TYPES`."""
    check_type(type)
    layers = 1 + max((_layer(name) for name in shapes), default=-1)
    # llama-quantize counts the layers that have a v, for v, and all layers for ffn_down.
    with_v = sorted(_layer(name) for name in shapes if _part(name) in ("attn_v", "attn_qkv"))
    types: dict[str, str] = {}
    fallbacks: Counter[tuple[str, str, int]] = Counter()
    for name, shape in shapes.items():
        types[name] = "F32"
        if len(shape) < 2 or name.endswith("_norm.weight") or name == "position_embd.weight":
            continue
        wanted = _wanted(name, type, "output.weight" not in shapes, layers, with_v)
        types[name] = _fitting(wanted, shape[-1])
        if types[name] != wanted:
            fallbacks[wanted, types[name], shape[-1]] += 1
    said = tuple(
        f"{counted(count, 'tensor')} in {got} instead of {wanted}: rows of {columns:,} numbers do not fill blocks of "
        f"{numbers_in_block(wanted)}"
        for (wanted, got, columns), count in fallbacks.items()
    )
    sizes = (bytes_of(prod(shape), types[name]) for name, shape in shapes.items())
    return TypePlan(type, types, said, sum(padded(size) for size in sizes))


def padded(size: int) -> int:
    """Bytes that a tensor of `size` bytes takes in the file."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _layer(name: str) -> int:
    """The number of a tensor's layer; −1 for those of none."""
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _part(name: str) -> str:
    return re.sub(r"^blk\.\d+\.|\.weight$", "", name)


def _wanted(name: str, type: str, tied: bool, layers: int, with_v: list[int]) -> str:
    """The type of a matrix whose rows fill any blocks."""
    most, part = _MOST.get(type, type), _part(name)
    if most in (*_WHOLE, "Q8_0"):
        return most
    if part == "output" or (part == "token_embd" and tied):
        return "Q6_K"
    if type in _MOST:
        if part == "ffn_down" and _more_bits(_layer(name), layers):
            return "Q6_K"
        if part in ("attn_v", "attn_qkv"):
            if _more_bits(with_v.index(_layer(name)), len(with_v)):
                return "Q6_K"
            return "Q5_K" if layers == _WIDE_HEADS else most
    return most


def _more_bits(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _fitting(wanted: str, columns: int) -> str:
    for type in (wanted, _INSTEAD.get(wanted, "F16")):
        if columns % numbers_in_block(type) == 0:
            return type
    return "F16"
