"""A card computes on its own time: what is asked of it joins a queue, and reading from it waits for all before.

What a training step needs of that stands here, each beside its plain twin for devices that are done when asked.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def overlaps(device: torch.device) -> bool:
    """Whether the host may go on while `device` computes. Not asked of Apple's MPS, which has no pinned memory."""
    return device.type == "cuda"


def use(device: torch.device) -> None:
    """Makes a card the one that torch takes by itself in this thread, kernels of Triton included; the first, where it
    has no number."""
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)


def wait_for(device: torch.device) -> None:
    """Waits until `device` has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        of: Any = torch.get_device_module(device)
        of.synchronize()


def later(values: Tensor) -> Callable[[], Tensor]:
    """Sends `values` to the host, where the function that is returned gives them: it waits only if they have not
    arrived by then."""
    if not overlaps(values.device):
        host = values.cpu()
        return lambda: host
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(values.device))

    def arrived() -> Tensor:
        event.synchronize()
        return host

    return arrived


def on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the host, where some may be already. In ordinary memory: what is pinned for a card stays so."""
    return {name: value.detach().cpu() for name, value in tensors.items()}


def host_buffer(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers (int64) in memory of the host from which `device` can fetch them by itself."""
    found = torch.tensor(numbers, dtype=torch.int64)
    return found.pin_memory() if overlaps(device) else found


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Numbers of the host on `device`, which fetches them by itself."""
    return values.pin_memory().to(device, non_blocking=True) if overlaps(device) else values.to(device)


def widest(device: torch.device) -> torch.dtype:
    """The format in which the numbers of many passes are summed."""
    return torch.float32 if device.type == "mps" else torch.float64


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The state of the random numbers that a run on `device` draws, by kind of device: the processor's, and its own."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        of: Any = torch.get_device_module(device)
        states[device.type] = of.get_rng_state(device)
    return states


def set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Puts the random numbers where `random_states` found them, as far as they are of such a device."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu" and device.type in states:
        of: Any = torch.get_device_module(device)
        of.set_rng_state(states[device.type], device)


@contextmanager
def same_random_numbers(device: torch.device) -> Iterator[None]:
    """Those drawn after the block are those that would have been drawn without it."""
    states = random_states(device)
    try:
        yield
    finally:
        set_random_states(states, device)
