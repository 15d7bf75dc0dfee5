"""Memory of a device: what this process holds there, at most so far, and what is free."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch

from afina.core.device.cards import device_name
from afina.core.device.formats import is_deterministic
from afina.core.device.host import host_free, host_limit, peak_resident, resident
from afina.core.errors import OutOfMemory

GB = 1e9
_SHARE, _MOST_TIMES = 64, 16  # of rows that are computed at one time: of the free memory, and over the least
HOST = torch.device("cpu")
# What torch says where memory is short: of the host, of cards, of their matrix library, of Apple's MPS.
_TOO_MUCH = ("allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "Invalid buffer size")
_most_read = [0]  # bytes of Apple's MPS, which counts no peak: the most that a reading found


class DeviceMemory(NamedTuple):
    """Bytes of a device. `allocated` by this process for tensors; `reserved` by torch for them and those to come; the
    `most` that was reserved; `free` of all `limit`, as the driver says. Of the host, what is resident is all three."""

    allocated: int
    reserved: int
    most: int
    free: int
    limit: int


def device_memory(device: torch.device = HOST) -> DeviceMemory:
    """A look at the device's memory, by torch's counters and its driver's."""
    if device.type == "cpu":
        now = resident()
        return DeviceMemory(now, now, peak_resident(), host_free(), host_limit())
    of: Any = torch.get_device_module(device)
    if device.type == "mps":  # the host's memory, of which Metal advises how much to take; it counts no peak
        reserved, limit = _held_by_mps(), of.recommended_max_memory()
        free = max(0, min(limit - reserved, host_free()))
        return DeviceMemory(of.current_allocated_memory(), reserved, _most_read[0], free, limit)
    free, limit = of.mem_get_info(device)
    held = (of.memory_allocated(device), of.memory_reserved(device), of.max_memory_reserved(device))
    return DeviceMemory(*held, free, limit)


def _held_by_mps() -> int:
    now = int(torch.mps.driver_allocated_memory())
    _most_read[0] = max(_most_read[0], now)
    return now


def memory_gb(device: torch.device = HOST) -> float:
    """What this process holds on the device now, in GB: resident memory of the host, else what torch has reserved."""
    if device.type == "cpu":
        return resident() / GB
    if device.type == "mps":
        return _held_by_mps() / GB
    of: Any = torch.get_device_module(device)
    return float(of.memory_reserved(device)) / GB


def peak_memory_gb(device: torch.device = HOST) -> float:
    """The most that `memory_gb` was, in GB; on a card since `forget_peak`, on Apple's MPS of what was read since."""
    return (peak_resident() if device.type == "cpu" else device_memory(device).most) / GB


def forget_peak(device: torch.device) -> None:
    """The peak is counted from now on, where it can be: of the host, it is that of the process. What is kept of tensors
    that are gone is given back before, for it was the peak of something else."""
    if device.type == "mps":
        _most_read[0] = 0
    elif device.type != "cpu":
        of: Any = torch.get_device_module(device)
        of.empty_cache()
        of.reset_peak_memory_stats(device)


def memory_free(device: torch.device = HOST) -> int:
    """Bytes that could be allocated now: what the driver has free, and what torch keeps of tensors that are gone."""
    if device.type == "cpu":
        return host_free()
    now = device_memory(device)
    return now.free + now.reserved - now.allocated


def rows_within(free: int, row_bytes: int, least: int) -> int:
    """Rows of so many bytes that are computed at one time where `free` bytes are: `least`, or times a power of two what
    a small share of the memory holds."""
    times = min(free // (_SHARE * row_bytes * least), _MOST_TIMES)
    return least << max(0, times.bit_length() - 1)


def rows_at_once(device: torch.device, row_bytes: int, least: int) -> int:
    """Rows of so many bytes that are computed at one time on `device`: a card takes more, where its memory allows it,
    to read once what all of them need. The processor does not, and nor does a card whose results are to have the same
    bits in every run."""
    return least if device.type != "cuda" or is_deterministic(device) else _rows_on(device, row_bytes, least)


@cache
def _rows_on(card: torch.device, row_bytes: int, least: int) -> int:
    """Asked once: other shapes in every pass would leave holes in its memory."""
    return rows_within(memory_free(card), row_bytes, least)


def memory_limit(device: torch.device = HOST) -> int:
    """Bytes of memory that processes may use there."""
    return host_limit() if device.type == "cpu" else device_memory(device).limit


def memory_in_words(device: torch.device) -> str:
    """'memory', or 'the memory of cuda:0 (NVIDIA T4: 15.8 GB, of which 9.1 GB are taken beside this run's
    tensors)'."""
    if device.type == "cpu":
        return "memory"
    now = device_memory(device)
    beside = max(0, now.limit - now.free - now.reserved)
    return (
        f"the memory of {device} ({device_name(device)}: {now.limit / GB:.1f} GB, of which {beside / GB:.1f} GB are "
        "taken beside this run's tensors)"
    )


@contextmanager
def fitting(device: torch.device, what: str, remedy: str) -> Iterator[None]:
    """Turns what torch raises where memory is short inside the block into `OutOfMemory`, which says that `what` does
    not fit, and where."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or any(said in str(error) for said in _TOO_MUCH)):
            raise
        raise OutOfMemory(f"{what} does not fit into {memory_in_words(device)}", remedy) from error
