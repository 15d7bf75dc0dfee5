"""Which implementation computes on a device."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from afina.engine import kernels
from afina.engine.ops import cards
from afina.engine.ops.by_cpp import CppOps
from afina.engine.ops.by_torch import TORCH, Ops


def chosen(device: torch.device, folder: Path) -> Ops:
    """The fastest on a device; the kernels of the processor's are compiled into `folder` the first time."""
    if device.type == "cpu":
        compiled = kernels.load(folder)
        return TORCH if compiled is None else CppOps(compiled)
    return _by_triton() if device.type in cards.TYPES else TORCH


def loaded(x: Tensor) -> Ops:
    """What was chosen last for tensors on the device and of the dtype of `x`, for code that was not given any."""
    if x.device.type in cards.TYPES:
        own = _by_triton()
        return own if own.takes(x) else TORCH
    compiled = kernels.loaded() if kernels.can_run(x) else None
    return TORCH if compiled is None else CppOps(compiled)


@cache
def _by_triton() -> Ops:
    """Triton's, where it is installed, as it is with torch's builds for cards."""
    try:
        from afina.engine.ops.cards.by_triton import TritonOps
    except ImportError:
        return TORCH
    return TritonOps()
