"""Where a training may run: this machine as it is now, and machines by name.

The latter are known by their published figures (docs/published.md).
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from afina.core.device import (
    compiler,
    device_memory,
    device_name,
    memory_gb,
    no_device,
    overlaps,
    pick_device,
    pick_dtype,
)
from afina.core.events import Listener, Notice, ignore
from afina.engine import ops
from afina.forecast.benchmark import is_calm, known, measured
from afina.forecast.cards import CARDS, MACHINES, PROCESSOR, PublishedMachine
from afina.forecast.speed import Rates, Speed, Width
from afina.models.footprint import element_size, free_bytes
from afina.models.load import import_libraries


@dataclass(frozen=True)
class Machine:
    """A machine with the memory and speed that a forecast needs.

    `available` are the bytes that the process can have, of which its `libraries` take some before anything is loaded.
    `fused`: there are kernels of our own, which keep less for the backward pass. `heap`: freed memory lies in a heap
    that other sizes do not fill. `device` is where passes may be timed; None where that is not wanted, or not possible.
    `is_card`: larger chunks of logits where there is room. `caution`: why its speed may be another; '' where it was
    measured and nothing disturbed that.
    """

    name: str
    available: int
    libraries: int
    dtype: torch.dtype
    speed: Speed
    fused: bool
    heap: bool
    device: torch.device | None = None
    is_card: bool = False
    caution: str = ""


_UTILISATION = 0.6  # of what large products reach: all of a layer's products, and what stands between them
_CONTEXT = 0.6e9  # bytes of a card's memory that its libraries hold
_WRITE = 1e-9
_LAUNCH = 4e-4  # seconds per layer and pass: some forty kernels, of ten microseconds each
# Bytes that are read and written for each token beside the products, times the width and over the layer's parameters:
# activations of 2.5 bytes, of which a forward pass moves two such amounts, and both passes six.
_KEPT, _MOVED = 2.5, (2, 6)
_WIDTHS = (512, 1024, 2048, 4096, 8192, 16384)


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
        listener(Notice(f"measuring how fast {_name(on)} is, once (some ten seconds)"))
        speed = measured(on, dtype, cache)
    caution = "" if speed else "a rough estimate: this machine's speed was not measured yet"
    if speed and speed.was_disturbed:
        caution = f"other programs used {speed.others:.1f} processors while this machine's speed was measured"
        if measure:
            listener(Notice(caution))
    on_cpu = on.type == "cpu"
    fused = compiler() is not None if on_cpu else ops.chosen(on, cache) is not ops.TORCH
    held = int(memory_gb() * 1e9) if on_cpu else device_memory(on).allocated
    return Machine(
        _name(on),
        free_bytes(on) + held,
        before if on_cpu else 0,  # what a card's libraries hold is not free, since it was tried
        dtype,
        speed or _estimated(PROCESSOR if on_cpu else CARDS["rtx3090"]),
        fused,
        heap=on_cpu and fused,
        device=on if measure else None,
        is_card=overlaps(on),
        caution=caution,
    )


def _name(device: torch.device) -> str:
    """How forecasts call the place where they are for; the card's name where it is one."""
    return "this machine" if device.type == "cpu" else f"{device}, {device_name(device)}"


_before: list[int] = []


def libraries() -> int:
    """Bytes that this process held when first asked, which is before it measures or loads anything."""
    import_libraries()
    if not _before:
        _before.append(int(memory_gb() * 1e9))
    return _before[0]


def named(name: str) -> Machine:
    """The machine called `name` in `MACHINES` or `CARDS`. Raises `SettingsError`."""
    known_ones = MACHINES | CARDS
    published = known_ones.get(name.lower())
    if published is None:
        raise no_device(name, list(known_ones))
    return Machine(
        published.title, int(published.free), int(_CONTEXT), published.dtype, _estimated(published),
        fused=published.kernels, heap=False, is_card=published.kernels,
    )  # fmt: skip


def _estimated(published: PublishedMachine) -> Speed:
    """Per parameter and token: two operations forward, two for the input's gradient, two for the weight's, and what
    stands between the products, which is bound by memory. Every pass reads all weights from memory; the optimiser
    reads and writes six numbers of four bytes for each that is trained.
    """
    operation = 1 / (_UTILISATION * published.products * published.operations)
    byte, size = 1 / published.bandwidth, element_size(published.dtype)

    def width(channels: int) -> Width:
        forward, both = (moved * _KEPT / channels * byte for moved in _MOVED)

        def rates(products: int, between: float) -> Rates:
            return Rates(a_pass=products * size * byte, a_token=2 * products * operation + between)

        return Width(
            forward=rates(1, forward), adapted=rates(1, forward), lora=rates(2, both), full=rates(3, both),
            few=size * byte,
        )  # fmt: skip

    return Speed(
        widths={channels: width(channels) for channels in _WIDTHS},
        attention=(4 * operation, 14 * operation),
        head=(2 * operation, 4 * operation, 6 * operation),
        adam=6 * 4 * byte,
        unpack=(0.5 + size) * byte,
        write=_WRITE,
        launch=_LAUNCH,
    )
