"""How gradients become steps: one file per optimiser, and their table.

Comes in: groups of parameters, and which of them are the two factors of one update. Goes out: a `torch.optim.Optimizer`
over them. What the forecast has to know of it, the bytes it keeps per trained number and what a step costs, stands
beside it. Masters, weight decay, clipping and checkpoints are the same for all (`training/optimizer.py`). To add an
optimiser is to add a file with its `OPTIMIZER`.
Public: `OptimizerSpec`, `OPTIMIZERS`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from afina.core.registry import Registry

if TYPE_CHECKING:
    import torch


class OptimizerSpec(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def moment_bytes(self) -> int:
        """Most bytes of state per trained number, which checkpoints hold too."""

    @property
    def master_bytes(self) -> int:
        """4 where parameters that are stored in less than fp32 get a master in fp32, whose small updates are not
        rounded away; 0 where the optimiser writes into them as they are."""

    @property
    def step_cost(self) -> float:
        """Seconds of a step per trained number, as a multiple of AdamW's."""

    @property
    def rate_factor(self) -> float:
        """The learning rate that suits it, as a multiple of AdamW's."""

    def build(
        self, groups: list[dict[str, Any]], factors: "Sequence[tuple[torch.Tensor, torch.Tensor]]"
    ) -> "torch.optim.Optimizer":
        """The optimiser over parameter groups, each with `params` and `weight_decay`; their `lr` is set before each
        step. `factors` are those of the parameters that are the A and B of one low-rank update. Its state must be
        tensors by name."""


OPTIMIZERS: Registry[OptimizerSpec] = Registry("afina.training.optimizers", "OPTIMIZER", "optimiser")
