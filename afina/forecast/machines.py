"""Where a training may run: this machine as it is now, and machines by name.

The latter are known by their published figures (docs/published.md).
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from afina.core.device import compiler, memory_gb, pick_device, pick_dtype
from afina.core.errors import SettingsError, near
from afina.core.events import Listener, Notice, ignore
from afina.forecast.speed import Rates, Speed, Width, is_calm, known, measured
from afina.models.footprint import element_size, free_bytes
from afina.models.load import import_libraries


@dataclass(frozen=True)
class Machine:
    """A machine with the memory and speed that a forecast needs.

    `available` are the bytes that the process can have, of which its `libraries` take some before anything is loaded.
    `device` is where passes may be timed; None where that is not wanted, or not possible.
    """

    name: str
    available: int
    libraries: int
    dtype: torch.dtype
    speed: Speed
    fused: bool
    device: torch.device | None = None


@dataclass(frozen=True)
class PublishedMachine:
    """A machine by its published figures: bytes that are free for a training, floating-point operations per second
    (dense, in 16 bits), bytes per second from memory.
    """

    title: str
    free: float
    operations: float
    bandwidth: float


MACHINES = {
    "24gb": PublishedMachine("a card of 24 GB (RTX 4090)", 23.5e9, 165e12, 1008e9),
    "80gb": PublishedMachine("a card of 80 GB (A100)", 79e9, 312e12, 2039e9),
    "laptop": PublishedMachine("a laptop of 16 GB (Apple M4)", 12e9, 2.9e12, 120e9),
}
_ROUGH = PublishedMachine("a processor", 0, 8e11, 2e10)  # assumed where nothing was measured
_UTILISATION = 0.5  # of a card's published operations: fine-tunings of 7 B models reach 0.38 to 0.68
_CONTEXT = 0.6e9  # bytes of a card's memory that its libraries hold
_WRITE = 1e-9
_LAUNCH = 4e-4  # seconds per layer and pass: some forty kernels, of ten microseconds each


def this_machine(
    cache: Path, device: str | None = None, precision: str = "auto", measure: bool = True, listener: Listener = ignore
) -> Machine:
    """This machine now. Its speed is measured where it is not known yet (some seconds, once); without `measure` it is
    then a rough estimate.
    """
    before = libraries()
    on = pick_device(device)
    dtype, _ = pick_dtype(precision, on, cache)
    speed = known(on, dtype, cache)
    if measure and (speed is None or (speed.was_disturbed and is_calm())):
        listener(Notice("measuring how fast this machine is, once (some ten seconds)"))
        speed = measured(on, dtype, cache)
    if measure and speed and speed.was_disturbed:
        listener(Notice(f"other programs used {speed.others:.1f} processors while this machine's speed was measured"))
    held = int(memory_gb() * 1e9)
    available = free_bytes(on) + (held if on.type == "cpu" else 0)
    on_cpu = on.type == "cpu"
    return Machine(
        "this machine",
        available,
        before if on_cpu else int(_CONTEXT),
        dtype,
        speed or _estimated(_ROUGH),
        on_cpu and compiler() is not None,
        device=on if measure else None,
    )


_before: list[int] = []


def libraries() -> int:
    """Bytes that this process held when first asked, which is before it measures or loads anything."""
    import_libraries()
    if not _before:
        _before.append(int(memory_gb() * 1e9))
    return _before[0]


def named(name: str) -> Machine:
    """The machine called `name` in `MACHINES`. Raises `SettingsError`."""
    if name not in MACHINES:
        raise SettingsError(
            f"--device {name!r} is no device or machine.{near(name, list(MACHINES))}",
            f"it takes cpu, cuda, mps, {', '.join(MACHINES)}",
        )
    published = MACHINES[name]
    return Machine(
        published.title, int(published.free), int(_CONTEXT), torch.bfloat16, _estimated(published), fused=False
    )


def _estimated(published: PublishedMachine) -> Speed:
    """Per parameter and token: two operations forward, two for the input's gradient, two for the weight's. Every pass
    reads all weights from memory; the optimiser reads and writes six numbers of four bytes for each that is trained.
    """
    operation, byte = 1 / (_UTILISATION * published.operations), 1 / published.bandwidth
    size = element_size(torch.bfloat16)

    def rates(products: int) -> Rates:
        return Rates(a_pass=products * size * byte, a_token=2 * products * operation)

    width = Width(forward=rates(1), adapted=rates(1), lora=rates(2), full=rates(3), few=size * byte)
    return Speed(
        widths={1024: width},
        attention=(4 * operation, 14 * operation),
        head=(2 * operation, 4 * operation, 6 * operation),
        adam=6 * 4 * byte,
        unpack=(0.5 + size) * byte,
        write=_WRITE,
        launch=_LAUNCH,
    )
