"""The number formats in which a model's files hold its weights, by their headers alone: those that are read as they
are, those that are read slowly or with a loss, and those that cannot be read, each with what to do."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from afina.core.errors import BaseModelError, InputError, counted
from afina.core.events import Finding, State
from afina.core.files import check_regular, read_json
from afina.core.limits import TENSORS
from afina.engine.blocks import GGML_FORMATS
from afina.models.formats.card import made_of
from afina.models.formats.gguf import GGUF, read_gguf

# By the name that config.json gives the program that quantised a model (`quant_method`).
_METHODS = {
    "aqlm": "AQLM (codebooks)",
    "auto-round": "AutoRound (int4)",
    "awq": "AWQ (int4)",
    "bitnet": "BitNet (ternary)",
    "bitsandbytes": "bitsandbytes (nf4, fp4 or int8)",
    "compressed-tensors": "compressed-tensors (int4, int8 or FP8 with scales)",
    "eetq": "EETQ (int8)",
    "fbgemm_fp8": "FP8 with a scale per row",
    "fp8": "FP8 with a scale per block",
    "gptq": "GPTQ (int4)",
    "hqq": "HQQ (int4)",
    "modelopt": "ModelOpt (FP8 or NVFP4)",
    "mxfp4": "MXFP4 (blocks of 32 numbers of 4 bits)",
    "quanto": "Quanto",
    "torchao": "torchao",
}
# Those that transformers unpacks as it reads them, by its class that says so; and their bits per number.
UNPACKED = {"fp8": ("FineGrainedFP8Config", 8), "mxfp4": ("Mxfp4Config", 4)}
_FLOATS = ("F64", "F32", "F16", "BF16")
_WEIGHTS = re.compile(r"(weight|bias|packed|blocks)$")  # others are buffers, such as the numbers of positions
_SCALES = re.compile(r"(scales?|scale_inv|absmax|_shape|zeros|zero_point)$")
# Types of GGUF that llama.cpp has given up, by their numbers.
_GIVEN_UP = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8",
    36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
}  # fmt: skip
_OTHER_FILE = "take the model's file in Q4_K_M, Q5_K_M, Q6_K or Q8_0, or its folder of safetensors"


@dataclass(frozen=True)
class NumberFormat:
    """A format and how many `tensors` are in it; `found` says what is unusual about it, `remedy` what to do."""

    name: str
    tensors: int
    state: State = "ok"
    found: str = ""
    remedy: str = ""


def number_formats(path: Path) -> tuple[NumberFormat, ...]:
    """Those of a GGUF file, or of a folder in transformers' format as far as its files are there and can be read, the
    most frequent first."""
    files = [path] if path.suffix == ".gguf" else [path / "config.json", path / "README.md"]
    files += sorted(path.glob("*.safetensors"))
    versions = tuple((file, file.stat().st_mtime_ns) for file in files if file.is_file())
    return _formats(path, versions)


@lru_cache(64)
def _formats(path: Path, versions: Any) -> tuple[NumberFormat, ...]:
    return tuple(_of_gguf(read_gguf(path)) if path.suffix == ".gguf" else _of_folder(path))


def check_number_formats(path: Path) -> None:
    """Raises `BaseModelError` where weights are in a format that cannot be read."""
    wrong = [each for each in number_formats(path) if each.state == "wrong"]
    if wrong:
        raise BaseModelError([f"base {path}: {each.found}" for each in wrong], wrong[0].remedy)


def unusual_formats(path: Path) -> list[str]:
    """A line about each format that is read slowly or with a loss."""
    return [f"{each.found} ({each.remedy})" for each in number_formats(path) if each.state == "warning"]


def findings(path: Path, name: str) -> Iterator[Finding]:
    """What is said of the model called `name`."""
    formats = number_formats(path)
    for each in formats:
        if each.state != "ok":
            yield Finding(f"model {name}", each.state, each.found, each.remedy)
    if formats and all(each.state == "ok" for each in formats):
        found = ", ".join(f"{counted(each.tensors, 'tensor')} in {each.name}" for each in formats)
        yield Finding(f"model {name}", "ok", found)


def _of_folder(folder: Path) -> Iterator[NumberFormat]:
    for file in folder.iterdir():
        check_regular(file, BaseModelError)
    method = quantised_by(folder)
    remedy = _unquantised(folder)
    if method is not None:
        name = _METHODS.get(method, f"the format of {method!r}")
        found = f"its weights are quantised as {name}, which is not read here"
        if method in UNPACKED:
            found = f"its weights are quantised as {name}, and unpacked to 16 bits or more as they are read"
            remedy = "--quantize nf4 or int8 keeps them small in memory"
        yield NumberFormat(name, 0, "warning" if method in UNPACKED else "wrong", found, remedy)
        return
    kinds: Counter[str] = Counter()
    scaled: Counter[str] = Counter()
    for path in sorted(folder.glob("*.safetensors")):
        try:
            dtypes = _dtypes(path)
        except (OSError, SafetensorError):  # which loading explains
            continue
        kinds.update(kind for name, kind in dtypes.items() if kind in _FLOATS or _WEIGHTS.search(name))
        scaled.update(kind for name, kind in dtypes.items() if _SCALES.search(name))
    for kind, count in kinds.most_common():
        yield _of_dtype(kind, count, bool(scaled), remedy)


def _of_dtype(kind: str, count: int, has_scales: bool, remedy: str) -> NumberFormat:
    if kind in _FLOATS:
        return NumberFormat(kind, count)
    tensors = counted(count, "tensor")
    if not kind.startswith("F") or has_scales:
        what = "whole numbers" if not kind.startswith("F") else "numbers of few bits"
        found = f"{tensors} of {what} ({kind}), which mean nothing without the program that quantised them"
        return NumberFormat(kind, count, "wrong", found, remedy)
    found = f"{tensors} of numbers of few bits ({kind}), which are read as they are, with what they have lost"
    return NumberFormat(kind, count, "warning", found, remedy)


def quantised_by(folder: Path) -> str | None:
    """What quantised the model, by its configuration; None where nothing did."""
    try:
        config = read_json(folder / "config.json")
    except InputError:
        return None
    if not isinstance(config, dict):
        return None
    text = config.get("text_config")
    for each in (config, text if isinstance(text, dict) else {}):
        for key in ("quantization_config", "compression_config"):
            found = each.get(key)
            if isinstance(found, dict) and found:
                method = found.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in found else "unknown")
                return method if isinstance(method, str) and len(method) <= 40 else "unknown"
    return None


def _unquantised(folder: Path) -> str:
    """The advice to take the model itself, by name where its card names it."""
    name = made_of(folder) or "the model that it was made of"
    return f"take {name} with --quantize nf4 or int8, or its .gguf file with --quantize keep"


def _dtypes(path: Path) -> dict[str, str]:
    """The dtype of each tensor as the file's header has it."""
    with safe_open(path, framework="np") as file:
        names = list(file.keys())
        if len(names) > TENSORS:
            raise BaseModelError(
                f"{path} has {counted(len(names), 'tensor')}, {TENSORS:,} are read", "check what it is"
            )
        return {name: str(file.get_slice(name).get_dtype()) for name in names}


def _of_gguf(file: GGUF) -> Iterator[NumberFormat]:
    for kind, count in Counter(info.kind for info in file.tensors.values()).most_common():
        name, tensors = _type_name(kind), counted(count, "tensor")
        if kind in GGML_FORMATS or name in _FLOATS:
            yield NumberFormat(name, count)
        elif _is_unpacked(kind):
            found = f"{tensors} in {name}, which are unpacked slowly, and which --quantize keep does not keep"
            yield NumberFormat(name, count, "warning", found, _OTHER_FILE)
        else:
            found = f"{tensors} in {name}, a type that is not read"
            yield NumberFormat(name, count, "wrong", found, _OTHER_FILE)


def _type_name(kind: int) -> str:
    from gguf import GGMLQuantizationType

    if kind in _GIVEN_UP:
        return f"{_GIVEN_UP[kind]} (which llama.cpp has given up)"
    try:
        return str(GGMLQuantizationType(kind).name)
    except ValueError:
        return f"type {kind}, of a later GGUF or none"


@lru_cache
def _is_unpacked(kind: int) -> bool:
    """Whether the package `gguf` unpacks the type: tried on a block of zeros."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    try:
        known = GGMLQuantizationType(kind)
        dequantize(np.zeros((1, GGML_QUANT_SIZES[known][1]), np.uint8), known)
    except (ValueError, KeyError, NotImplementedError):
        return False
    return True
