"""Compiles the C++ in cpp/ for this processor, once, and calls it. Where that cannot be done `load` gives None, and
torch computes."""

import ctypes
import hashlib
import os
import platform
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from afina.core.device import compiler, processor, processor_features
from afina.core.errors import OutputError, brief
from afina.core.files import write_atomic

_FOLDER = Path(__file__).parent / "cpp"
SOURCES = sorted(_FOLDER.glob("*.cpp"))
_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-std=c++17", "-fPIC", "-shared")
_SUFFIX = {torch.float32: "fp32", torch.bfloat16: "bf16"}
_TIMEOUT = 300  # seconds for the compiler, which takes some ten where it has two cores to itself
_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH

Pointer, Long, Int, Float = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
_SIGNATURES: dict[str, list[Any]] = {
    "rms_forward": [Pointer, Long, Pointer, Long, *[Pointer] * 4, Long, Long, Float, Int],
    "rms_backward": [Pointer, Pointer, Long, Pointer, Long, *[Pointer] * 3, Long, Long, Long, Int],
    "gated_forward": [Pointer, Long, Pointer, Long, Long, Int, Int],
    "gated_backward": [Pointer, Long, Pointer, Pointer, Long, Long, Int, Int],
    "rotary_forward": [Pointer, Long, Pointer, Pointer, Long, Int],
    "rotary_backward": [Pointer, Pointer, Long, Pointer, Long, Int],
    "attention_forward": [Pointer, Long, Pointer, Long, Pointer, Long, *[Pointer] * 3],
    "attention_backward": [Pointer, Long, Pointer, Long, Pointer, Long, *[Pointer] * 4, Long, Pointer],
    "attention_read": [Pointer, Long, Pointer, Long, Pointer, Pointer, Long, *[Pointer] * 4],
    "attention_step": [Pointer, Long, Pointer, Long, Pointer, Pointer, Long, *[Pointer] * 4],
    "cross_entropy": [Pointer, Pointer, Pointer, Long, Long, Int, Int],
    "unpack": [Pointer, Long, Int, Pointer, Long, Long, Long, Int],
    "quantise": [Pointer, Int, Pointer, Long, Int],
    "few_rows": [Pointer, Long, *[Pointer] * 2, Long, Pointer, Long, Long, Long, Int],
    "mixed_add": [Pointer, Long, Pointer, Long, Pointer, Long, Long, Long, Int],
}
# In bf16 alone, and only where the processor multiplies pairs of bf16 numbers (AVX-512 BF16).
_PAIRS: dict[str, list[Any]] = {
    "low_rank_pack": [Pointer, Float, Pointer, Pointer, Long, Long],
    "low_rank_add": [Pointer, Long, Pointer, Long, Pointer, Long, Long, Long, Int],
    "low_rank_project": [Pointer, Long, Pointer, Pointer, Long, Long, Long, Long, Int],
    "low_rank_outer": [Pointer, Long, Pointer, Long, Pointer, Long, Long, Float, Long, Long, Long, Int],
}
_IN_MEMORY = ctypes.Structure, ctypes.Array
LANES = 16  # numbers in the widest vector


class Heads(ctypes.Structure):
    """Heads of queries, of keys and values, the width of each, and how much of it is rotated."""

    _fields_ = (("q", Long), ("kv", Long), ("width", Long), ("rotated", Long))


class Rotary(ctypes.Structure):
    _fields_ = (
        *((name, Pointer) for name in ("cosines", "sines", "positions", "wq", "wk")),
        ("heads", Heads),
        ("norm", Int),
        ("eps", Float),
    )


class Attention(ctypes.Structure):
    _fields_ = (
        ("segments", Long),
        ("bounds", Pointer),
        ("starts", Pointer),
        ("parents", Pointer),
        ("trees", Long),
        ("roots", Pointer),
        ("heads", Heads),
        ("scale", Float),
        ("window", Long),
        ("cap", Float),
        ("threads", Int),
    )


class OutputSlice(ctypes.Structure):
    """The outputs `begin` to `end` of a joined product: their low-rank update, A (rank, K) and s·B with its ranks
    padded with zeros, and their weights, as bf16 numbers or as rows of blocks."""

    _fields_ = (
        *((name, Long) for name in ("begin", "end", "rank")),
        *((name, Pointer) for name in ("a", "b", "weights")),
        ("row_bytes", Long),
        ("format", Int),
    )


class MixedSlice(ctypes.Structure):
    """What an adapter adds to the outputs `begin` to `end` of a joined product: `rank` of its low numbers, from `low`
    on, times s·B in tiles."""

    _fields_ = (*((name, Long) for name in ("begin", "end", "low", "rank")), ("b", Pointer))


class MixedProduct(ctypes.Structure):
    """What an adapter has for one joined product: A in tiles, with `ranks` in all of them, and its slices."""

    _fields_ = (("ranks", Long), ("a", Pointer), ("count", Long), ("slices", Pointer))


NUMBERS = -1  # the format of weights that are not in blocks


class Kernels:
    """The compiled functions: `call("gated_forward", x, …)` calls the one for `dtype`, by default x's. Tensors and
    structures are passed by address."""

    def __init__(self, library: ctypes.CDLL, seconds: float, unkept: str = "") -> None:
        self.seconds = seconds  # that compilation took; 0 where a compiled library was cached
        self.unkept = unkept  # why the next process compiles again, in words
        self.on_call: Callable[[Any, list[Any], tuple[Any, ...]], None] | None = None  # hears of each (tape.py)
        self._functions: dict[tuple[str, torch.dtype], Any] = {}
        for name, signature in _SIGNATURES.items():
            for dtype, suffix in _SUFFIX.items():
                function = getattr(library, f"{name}_{suffix}")
                function.argtypes, function.restype = signature, None
                self._functions[name, dtype] = function
        self.multiplies_pairs = hasattr(library, "low_rank_add_bf16")
        for name, signature in _PAIRS.items() if self.multiplies_pairs else ():
            function = getattr(library, f"{name}_bf16")
            function.argtypes, function.restype = signature, None
            self._functions[name, torch.bfloat16] = function

    def __deepcopy__(self, memo: dict[int, Any]) -> "Kernels":
        return self

    def call(self, name: str, *arguments: Any, dtype: torch.dtype | None = None) -> None:
        function = self._functions[name, dtype or arguments[0].dtype]
        addresses = [_address(a) for a in arguments]
        function(*addresses)
        if self.on_call is not None:
            self.on_call(function, addresses, arguments)


def _address(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    return ctypes.addressof(argument) if isinstance(argument, _IN_MEMORY) else argument


def expect(dtype: torch.dtype, *tensors: tuple[Tensor, tuple[int, ...]]) -> None:
    """Raises `IndexError` where a tensor is not what native code will take it for: of this dtype and shape, on the
    processor, the numbers of a row side by side. Rows may be strided: torch itself keeps them within their memory."""
    for tensor, shape in tensors:
        if tensor.shape != shape or tensor.dtype != dtype or tensor.stride(-1) != 1 or tensor.device.type != "cpu":
            if tensor.numel() <= 1 and tensor.shape == shape and tensor.dtype == dtype:
                continue  # a single number has any stride
            raise IndexError(
                f"a kernel expects {dtype} {tuple(shape)} in rows on the processor, not {tensor.dtype} "
                f"{tuple(tensor.shape)} with strides {tensor.stride()} on {tensor.device}"
            )


def expect_below(limit: int, indices: Tensor) -> None:
    """Raises `IndexError` where an index is not in 0 … limit − 1."""
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < limit:
        raise IndexError(f"indices from {int(indices.min())} to {int(indices.max())}, expected 0 to {limit - 1}")


def can_run(x: Tensor) -> bool:
    """Whether the kernels take tensors like `x`."""
    return x.device.type == "cpu" and x.dtype in _SUFFIX


_loaded: dict[Path, Kernels | str] = {}  # for each cache, or why there are none


def load(cache: Path) -> Kernels | None:
    """The kernels, compiled into `cache` the first time; None where that cannot be done here."""
    if cache not in _loaded:
        try:
            _loaded[cache] = _load(cache)
        except _NotCompiledError as error:
            _loaded[cache] = str(error)
    found = _loaded[cache]
    return None if isinstance(found, str) else found


def loaded() -> Kernels | None:
    """The kernels that were loaded last, for code that was not given any."""
    return next((each for each in reversed(_loaded.values()) if isinstance(each, Kernels)), None)


def why_not() -> str:
    """Why `load` last gave None, in words."""
    return next((each for each in reversed(_loaded.values()) if isinstance(each, str)), "")


class _NotCompiledError(Exception):
    """Why there are no kernels, in words."""


def _load(cache: Path) -> Kernels:
    program = compiler()
    if program is None:
        raise _NotCompiledError("there is no C++ compiler (g++)")
    features = " ".join(sorted(processor_features()))  # a cache may be shared by machines that are called the same
    identity = f"{processor()} {features} {platform.machine()} {torch.__version__} {program} {_FLAGS}".encode()
    text = b"".join(path.read_bytes() for path in [*SOURCES, *sorted(_FOLDER.glob("*.h"))])
    path = cache / "kernels" / f"{hashlib.sha256(text + identity).hexdigest()[:24]}.so"
    started = time.monotonic()
    with suppress(OSError, AttributeError):
        return Kernels(_open(path), 0.0)
    try:
        with tempfile.TemporaryDirectory(prefix="afina-kernels-", ignore_cleanup_errors=True) as folder:
            made = Path(folder) / path.name
            _compile(program, made)
            try:
                library, unkept = _kept(made, path), ""
            except (OutputError, OSError) as error:  # that only costs the compilation again
                library, unkept = ctypes.CDLL(str(made)), f", which were not kept ({error})"
            return Kernels(library, time.monotonic() - started, unkept)
    except subprocess.TimeoutExpired:
        why = f"{program} had not compiled them after {_TIMEOUT} s, and the next command tries again"
        raise _NotCompiledError(why) from None
    except (OSError, AttributeError) as error:
        raise _NotCompiledError(f"{program} could not compile them ({brief(error)})") from error


def _compile(program: str, made: Path) -> None:
    """Compiles `SOURCES` to `made`. The processes that the compiler starts end with it, and what it writes for itself
    is in the folder of `made`. Raises `OSError` or `TimeoutExpired`."""
    with subprocess.Popen(
        [program, *_FLAGS, *_openmp(), *map(str, SOURCES), "-o", str(made)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=made.parent,
        env={**os.environ, **dict.fromkeys(("TMPDIR", "TMP", "TEMP"), str(made.parent))},
        start_new_session=True,
    ) as process:
        try:
            _, said = process.communicate(timeout=_TIMEOUT)
        except BaseException:
            if hasattr(os, "killpg"):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()
            raise
    if process.returncode:
        lines = said.decode(errors="replace").splitlines()
        raise OSError(next((line for line in lines if "error" in line), f"it ended with {process.returncode}"))


_RECORD = ".sha256"


def _open(path: Path) -> ctypes.CDLL:
    """The compiled library at `path`. Raises `OSError` where it is not what was compiled: cut or changed, or where
    others than this user and root could have put it there."""
    record = path.with_suffix(_RECORD)
    for each in (path.parent, record):
        _check_ours(each.stat(), each)
    with path.open("rb") as file:
        _check_ours(os.fstat(file.fileno()), path)
        if hashlib.file_digest(file, "sha256").hexdigest() != record.read_text(encoding="ascii", errors="replace"):
            raise OSError(f"{path} is not what was compiled")
        handle = os.dup(file.fileno())  # stays open: it names the library, and each library needs a name of its own
    same = Path(f"/proc/self/fd/{handle}")  # the very file that was checked, whatever is at `path` by now
    return ctypes.CDLL(str(same if same.exists() else path))


def _kept(made: Path, path: Path) -> ctypes.CDLL:
    """The library that was compiled to `made`, kept at `path`. Raises `OSError` or `OutputError` where it cannot be."""
    path.parent.mkdir(0o755, parents=True, exist_ok=True)
    _check_ours(path.parent.stat(), path.parent)
    content = made.read_bytes()
    write_atomic(path.with_suffix(_RECORD), hashlib.sha256(content).hexdigest())
    write_atomic(path, content)
    for each in (path, path.with_suffix(_RECORD)):
        each.chmod(each.stat().st_mode & ~_BY_OTHERS)  # whatever the umask leaves to a group
    return _open(path)


def _check_ours(found: os.stat_result, path: Path) -> None:
    """Raises `OSError` where others than this user and root can write."""
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & _BY_OTHERS:
        raise OSError(f"others can write to {path}")


def _openmp() -> list[str]:
    """Links torch's own OpenMP, so that there is one pool of threads: two would fight for the cores."""
    own = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return ["-fopenmp", *map(str, own[:1])]
