"""The processes that train one model together: the one place that knows how many there are.

Today a run is one process. A world of several is a subclass whose `exchange` reaches the others.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

T = TypeVar("T")
N = TypeVar("N", int, float, Tensor)


@dataclass(frozen=True)
class World:
    """This process is number `rank` of `size`. What is said of all processes must be called by all of them, in the
    same order."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes files and decides for all."""
        return self.rank == 0

    def exchange(self, value: T) -> list[T]:
        """The `value` of each process, by rank."""
        assert self.size == 1, "a world of several processes has an exchange of its own"
        return [value]

    def sum(self, value: N) -> N:
        """The sum of the `value` of each process."""
        total, *others = self.exchange(value)
        for other in others:
            total = total + other
        return total

    def agree(self, decision: T) -> T:
        """One decision for all: the main process's."""
        return self.exchange(decision)[0]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Puts into each parameter's gradient its sum over the processes; one that none of them has stays None."""
        if self.size == 1:
            return
        for parameter in parameters:
            known = [gradient for gradient in self.exchange(parameter.grad) if gradient is not None]
            parameter.grad = sum(known[1:], known[0]) if known else None

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The items that are this process's to work on: each is one process's."""
        return items if self.size == 1 else items[self.rank :: self.size]

    def seed(self, seed: int) -> int:
        """The seed of this process's random numbers (dropout), another in each; the first has `seed` itself."""
        return seed + self.rank


SINGLE = World()  # the world of a run that is one process
