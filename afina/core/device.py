"""The machine: which device, which number format is fast on it, and how much memory the process holds."""

import ctypes
import json
import platform
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from afina.core.config import Settings
from afina.core.errors import OutputError, SettingsError
from afina.core.files import check_writable, write_json
from afina.core.process.children import program
from afina.core.process.homes import cache_home, lasts

KINDS = ("cpu", "cuda", "mps")  # of devices
HOST = torch.device("cpu")
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Compute(Settings):
    """What the arithmetic of a run is done by, with nothing left open but the device (None is the best that is
    there)."""

    device: str | None
    precision: Literal["bf16", "fp32"]
    threads: int


def precision_of(dtype: torch.dtype) -> Literal["bf16", "fp32"]:
    """The name of a compute dtype."""
    return "bf16" if dtype == torch.bfloat16 else "fp32"


def cache_folder(given: Path | None = None) -> Path:
    """Where downloads, prepared rows, kernels and measurements are kept: `given` (`--cache-dir`), else the folder
    that the environment variable AFINA_CACHE names, else the user's cache folder."""
    return given or cache_home()


OTHER_CACHE = "name another folder for the cache with --cache-dir DIR, or in the environment as AFINA_CACHE"


def unkept(cache: Path) -> str:
    """Why nothing can be kept in `cache` for later runs, in words; '' where all is well."""
    if not lasts(cache):
        return f"nothing is kept for the next run, there is no home folder: {OTHER_CACHE}"
    try:
        check_writable(cache / "kept")
    except OutputError as error:
        return f"nothing is kept for the next run, {error.problems[0]}: {OTHER_CACHE}"
    return ""


def pick_device(name: str | None = None) -> torch.device:
    """The device called `name`, or: CUDA, then Apple's MPS, then the processor. Raises `SettingsError`."""
    if name:
        try:
            device = torch.device(name)
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            # torch answers a name that it does not know with all that it knows
            reason = str(error).splitlines()[0][:120]
            why = "there is no such device" if "Expected one of" in reason else reason
            raise SettingsError(f"--device {name!r} cannot be used here: {why}", "leave it out, or use cpu") from error
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def pick_dtype(precision: str, device: torch.device, cache: Path) -> tuple[torch.dtype, str]:
    """The compute dtype for `precision` (bf16, fp32 or auto) on `device`, and the reason in words.

    `auto` takes bf16 where a matrix product of a training step's shape is at least 1.3 times as fast in it
    as in fp32; the measurement takes under a second and is kept in `cache` by processor, torch and threads.
    """
    if precision != "auto":
        return PRECISIONS[precision], "as asked"
    ratio = _bf16_speedup(device, cache)
    if ratio >= 1.3:
        return torch.bfloat16, f"bf16 products are {ratio:.1f} times as fast as fp32 here (measured)"
    return torch.float32, f"bf16 products are only {ratio:.1f} times as fast as fp32 here (measured)"


def _bf16_speedup(device: torch.device, cache: Path) -> float:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{processor()} {torch.get_num_threads()}"
    key = f"{device.type} {name} torch {torch.__version__}"
    path = cache / "bf16_speedup.json"
    known: dict[str, float] = {}
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = dict(json.loads(path.read_text()))
        return float(known[key])
    ratio = _product_seconds(torch.float32, device) / _product_seconds(torch.bfloat16, device)
    with suppress(OutputError):  # a cache that cannot be written costs a second a run, no more
        write_json(path, known | {key: round(ratio, 2)})
    return ratio


def _product_seconds(dtype: torch.dtype, device: torch.device) -> float:
    x = torch.randn(512, 1024, device=device).to(dtype)
    weight = torch.randn(1024, 1024, device=device).to(dtype)
    times = []
    for _ in range(12):
        start = time.perf_counter()
        y = x @ weight.T
        y.sum().item()  # waits for a device that computes on its own time
        times.append(time.perf_counter() - start)
    return min(times)  # what else runs on the machine only ever adds


def device_name(device: torch.device) -> str:
    """A card's name as its driver gives it; another device's kind."""
    if device.type == "cpu":
        return "the processor"
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else device.type


def overlaps(device: torch.device) -> bool:
    """Whether the host may go on while `device` computes. Not asked of Apple's MPS, which has no pinned memory."""
    return device.type == "cuda"


def wait_for(device: torch.device) -> None:
    """Waits until `device` has done what was asked of it."""
    if device.type != "cpu":
        of: Any = torch.get_device_module(device)
        of.synchronize()


def later(values: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Sends `values` to the host, where the function that is returned gives them: it waits only if they have not
    arrived by then."""
    if not overlaps(values.device):
        host = values.cpu()
        return lambda: host
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(values.device))

    def arrived() -> torch.Tensor:
        event.synchronize()
        return host

    return arrived


def widest(device: torch.device) -> torch.dtype:
    """The format in which `device` computes most precisely."""
    return torch.float32 if device.type == "mps" else torch.float64


def sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Numbers of the host on `device`, which fetches them by itself."""
    return values.pin_memory().to(device, non_blocking=True) if overlaps(device) else values.to(device)


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def processor_features() -> frozenset[str]:
    """What the processor can do beyond its architecture, as Linux names it; empty where no file says it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, words = line.partition(":")
            if name.strip() in ("flags", "Features"):  # x86, ARM
                return frozenset(words.split())
    return frozenset()


def compiler() -> str | None:
    """The path of a C++ compiler, where there is one."""
    return program("c++", "g++", "clang++")


def memory_gb() -> float:
    """Resident memory of this process now, in GB."""
    return float(psutil.Process().memory_info().rss) / 1e9


def peak_memory_gb() -> float:
    """The most memory that this process has held, in GB (the larger of resident and CUDA memory)."""
    if sys.platform == "win32":
        peak = float(psutil.Process().memory_info().peak_wset)
    else:
        peak = _peak_bytes()
    return max(peak, float(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0.0) / 1e9


def _peak_bytes() -> float:
    with suppress(OSError, StopIteration):  # Linux's ru_maxrss would begin with what the parent process held
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024.0 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


LARGE_BLOCK = 2 << 20  # bytes: memory of so many and more goes back to the system once it is freed


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory for the next tensor: giving it back and fetching it anew costs a third of a
    step.

    One arena for all threads, since autograd frees in one thread what another allocated; large blocks still go
    back, or the heap would grow by fragments. Does nothing where the C library is another one.
    """
    if sys.platform != "linux":
        return
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # of malloc.h
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(arena_max, 1)
        library.mallopt(mmap_threshold, LARGE_BLOCK)
        library.mallopt(trim_threshold, (1 << 31) - 1)
