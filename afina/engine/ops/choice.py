"""Which implementation computes on a device."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from afina.core.errors import brief
from afina.engine import kernels
from afina.engine.ops import cards
from afina.engine.ops.by_cpp import CppOps
from afina.engine.ops.by_torch import TORCH, Ops


def chosen(device: torch.device, folder: Path) -> Ops:
    """The fastest on a device; the kernels of the processor's are compiled into `folder` the first time."""
    if device.type == "cpu":
        compiled = kernels.load(folder)
        return TORCH if compiled is None else CppOps(compiled)
    return _by_triton(device)[0] if device.type in cards.TYPES else TORCH


def loaded(x: Tensor) -> Ops:
    """What was chosen last for tensors on the device and of the dtype of `x`, for code that was not given any."""
    if x.device.type in cards.TYPES:
        own = _by_triton(x.device)[0]
        return own if own.takes(x) else TORCH
    compiled = kernels.loaded() if kernels.can_run(x) else None
    return TORCH if compiled is None else CppOps(compiled)


def why_torch(device: torch.device) -> tuple[str, str] | None:
    """Why torch computes on a card that Triton compiles for, and the remedy; None where it does not, and on other
    devices."""
    return _by_triton(device)[1] if device.type in cards.TYPES else None


@cache
def _by_triton(device: torch.device) -> tuple[Ops, tuple[str, str] | None]:
    """Triton's, where it is installed, as it is with torch's builds for cards, and runs: it compiles with the machine's
    C compiler, and not for every card; else torch's, and why."""
    slower = "slower, same results"
    try:
        from afina.engine.ops.cards.by_triton import TritonOps, try_on
    except ImportError as error:
        remedy = "install the torch that https://pytorch.org names for this machine, which brings it"
        return TORCH, (f"Triton cannot be imported ({brief(error)}): {slower}", remedy)
    try:
        try_on(device)
    except Exception as error:  # of compilers, of the driver, of files: whatever it is, torch needs none of it
        remedy = "it needs a C compiler (gcc or clang), and a card of a generation that it knows"
        return TORCH, (f"Triton cannot run a kernel ({brief(error)}): {slower}", remedy)
    return TritonOps(), None
