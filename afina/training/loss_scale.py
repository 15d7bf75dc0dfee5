"""The factor of the loss where gradients are computed in fp16, which has few small numbers.

Small gradients would be rounded to zero: the loss is multiplied by a power of two, and its gradients, once they are in
fp32, divided by it (Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740, section 3.2). Where some gradient is
too large for fp16 the step is skipped and the scale halved; after many steps without, it is doubled.
"""

import torch
from torch import Tensor

_FIRST = 2.0**16
_LEAST = 1.0  # below, it is not the scale that makes gradients too large
_PATIENCE = 2000  # steps without one that was skipped


class LossScale:
    """`factor` and what it is decided by, on the device, where they are also changed: nobody waits for them."""

    def __init__(self, device: torch.device) -> None:
        self.factor = torch.full((), _FIRST, device=device)
        self._calm = torch.zeros((), device=device)  # steps since one was skipped, or since the factor was doubled
        self.skipped = torch.zeros((), device=device)  # steps in all

    def update(self, overflowed: Tensor) -> None:
        """After a step, whether some gradient `overflowed` (a number that is 1 or 0)."""
        self.skipped += overflowed
        self._calm = (self._calm + 1) * (1 - overflowed)
        double = self._calm >= _PATIENCE
        self.factor = torch.where(double, 2 * self.factor, self.factor * (1 - 0.5 * overflowed))
        self._calm = torch.where(double, 0.0, self._calm)

    def state(self) -> dict[str, Tensor]:
        """For checkpoints."""
        return {"factor": self.factor, "calm": self._calm, "skipped": self.skipped}

    def set_state(self, state: dict[str, Tensor]) -> None:
        self.factor, self._calm, self.skipped = (
            state[name].clone().to(self.factor.device) for name in ("factor", "calm", "skipped")
        )


def is_too_small(factor: float) -> bool:
    """Whether even an unscaled loss has gradients that are too large for fp16."""
    return factor < _LEAST
