"""Which implementation computes on a device."""

from pathlib import Path

import torch
from torch import Tensor

from afina.engine import kernels
from afina.engine.ops.by_cpp import CppOps
from afina.engine.ops.by_torch import TORCH, Ops


def chosen(device: torch.device, cache: Path) -> Ops:
    """The fastest on a device; the kernels of the processor's are compiled into `cache` the first time."""
    compiled = kernels.load(cache) if device.type == "cpu" else None
    return TORCH if compiled is None else CppOps(compiled)


def loaded(x: Tensor) -> Ops:
    """What was chosen last for tensors on the device and of the dtype of `x`, for code that was not given any."""
    compiled = kernels.loaded() if kernels.can_run(x) else None
    return TORCH if compiled is None else CppOps(compiled)
