"""The processor: its name, what it can, its compiler; and the memory beside it."""

import ctypes
import platform
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from afina.core.process.children import program


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


def resident() -> int:
    """Bytes of resident memory of this process now."""
    return int(psutil.Process().memory_info().rss)


def peak_resident() -> int:
    """The most bytes of resident memory that this process has held."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    with suppress(OSError, StopIteration):  # Linux's ru_maxrss would begin with what the parent process held
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def host_limit() -> int:
    """Bytes of memory that processes here may use: the machine's, or less where a container is given less."""
    found = [int(psutil.virtual_memory().total)]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # no such file, or "max"
            found.append(int(Path(file).read_text()))
    return min(found)


def host_free() -> int:
    """Bytes of memory that could be taken now, within what a container may use."""
    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError, StopIteration):  # not in a container, or with no limit
        lines = Path("/sys/fs/cgroup/memory.stat").read_text().splitlines()
        taken = next(int(line.split()[1]) for line in lines if line.startswith("anon "))
        free = min(free, host_limit() - taken)
    return max(0, free)


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
