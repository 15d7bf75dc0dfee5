"""What a training step learns from: one file per objective, and their table.

Comes in: rows, and a base. Goes out: units (what is learned from at one time: a row, or a pair of rows), their
micro-batches, the loss of each, and the measure that is watched on the held-out rows. The loop, checkpoints, early
stopping, searches and reports know the protocol alone. To add an objective is to add a file with its `OBJECTIVE`.
Public: `Objective`, `Unit`, `OBJECTIVES`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from afina.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from afina.data.template import Row
    from afina.engine.forest import Group
    from afina.models.load import Base


class Unit(Protocol):
    """What is learned from at one time, and is never split between micro-batches or processes."""

    @property
    def location(self) -> str:
        """Where it was read, for messages: file and line."""


U = TypeVar("U", bound=Unit)


class Objective(Protocol[U]):
    """The mean loss of a step is Σ loss / Σ weight over all its units, however they are divided into micro-batches and
    processes. The held-out measure comes of sums over units too, for the same reason."""

    @property
    def name(self) -> str: ...

    @property
    def measure(self) -> str:
        """The one of `numbers` by which the best weights, early stopping and the trials of a search are decided."""

    @property
    def lower_is_better(self) -> bool:
        """The direction of the measure."""

    def units(self, rows: Sequence["Row"]) -> Sequence[U]:
        """What is learned from `rows`, in their order. They may lie on disk: each should be read when asked for."""

    def lengths(self, units: Sequence[U]) -> Sequence[int]:
        """The tokens of each of `units`."""

    def prompt(self, unit: U) -> Sequence[int]:
        """The tokens by which units belong together (`TrainingSettings.group_prompts`)."""

    def weight(self, unit: U) -> float:
        """The unit's share in the mean loss: its labelled tokens, or 1 where units count alike."""

    def passes(self, base: "Base", units: Sequence[U], max_tokens: int, max_units: int | None) -> "list[Group]":
        """The units in groups for one forward pass each, of up to `max_tokens` tokens that the base
        computes (a longer unit goes alone) and `max_units` units."""

    def batch(self, base: "Base", units: Sequence[U]) -> Any:
        """What `loss` reads of a micro-batch, made on the host: on a card, by a thread while it computes the one
        before."""

    def loss(self, base: "Base", batch: Any) -> "Tensor":
        """The summed loss (a scalar in fp32) of one forward pass over a `batch`, to be differentiated. Nothing in it
        reads from the device."""

    def sums(self, base: "Base", units: Sequence[U]) -> Sequence[float]:
        """What `numbers` needs of `units`, all sums over them, without gradients and in evaluation mode."""

    def numbers(self, sums: Sequence[float]) -> dict[str, float]:
        """The measure, and what else is told with it, by name, of `sums` over all held-out units."""


OBJECTIVES: Registry[Objective[Any]] = Registry("afina.training.objectives", "OBJECTIVE", "objective")
