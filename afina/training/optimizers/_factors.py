"""AdamW for all parameters but the factors of low-rank updates, whose gradients or steps an optimiser makes itself.

Factors of the same shape are stacked, so that what is done with them is a few products of many matrices, not many small
ones. N pairs of a shape, R rank, I inputs, O outputs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]  # A (R, I) and B (O, R)


class FactorOptimizer(torch.optim.AdamW):
    """`change` is called for the pairs of each shape before AdamW's step: it gives them other gradients, or moves them
    itself (`move`), and then leaves AdamW none."""

    def __init__(self, groups: list[dict[str, Any]], factors: Sequence[Pair]) -> None:
        super().__init__(groups, fused=True)
        self.found_inf: Tensor | None = None  # on a card 1.0 where the step is to change nothing: AdamW's name for it
        self._stacks: dict[Any, list[Pair]] = {}
        for a_RI, b_OR in factors:
            self._stacks.setdefault((a_RI.shape, b_OR.shape, a_RI.device), []).append((a_RI, b_OR))
        self._group_of = {id(p): group for group in self.param_groups for p in group["params"]}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for pairs in self._stacks.values():
            learning = [pair for pair in pairs if all(factor.grad is not None for factor in pair)]
            if learning:
                self.change(*(list(side) for side in zip(*learning, strict=True)))
        return super().step(closure)

    def change(self, a_factors: list[Tensor], b_factors: list[Tensor]) -> None:
        """Takes all A and all B of one shape, in the same order."""
        raise NotImplementedError

    def gradients(self, factors: list[Tensor]) -> Tensor:
        """Those of `factors`, stacked; zeros in a step that changes nothing, for what is made of others may fail."""
        found: Tensor = self._unless_skipped(torch.stack([f.grad for f in factors if f.grad is not None]), 0.0)
        return found

    def kept(self, factors: list[Tensor], name: str, *shape: int) -> Tensor:
        """The state `name` of `factors`, stacked, in the given shape; zeros before their first step."""
        return torch.stack([self.state[f][name] if name in self.state[f] else f.new_zeros(shape) for f in factors])

    def keep(self, factors: list[Tensor], **values: Tensor) -> None:
        """Makes the stacked values their state, each in memory of its own, as checkpoints need it."""
        for name, stack in values.items():
            if self.found_inf is not None:
                stack = self._unless_skipped(stack, self.kept(factors, name, *stack.shape[1:]))
            for factor, value in zip(factors, stack, strict=True):
                self.state[factor][name] = value.clone()

    def move(self, factors: list[Tensor], steps: Tensor) -> None:
        """Takes the stacked `steps`, times the learning rate, after the weight decay. AdamW gets nothing to do."""
        for factor, step in zip(factors, self._unless_skipped(steps, 0.0), strict=True):
            group = self._group_of[id(factor)]
            if group["weight_decay"]:
                factor.mul_(self._unless_skipped(1 - group["lr"] * group["weight_decay"], 1.0))
            factor.sub_(step, alpha=group["lr"])
            factor.grad = None

    def _unless_skipped(self, value: Any, otherwise: Any) -> Any:
        """`otherwise` in a step that is to change nothing, as the card finds by itself."""
        return value if self.found_inf is None else torch.where(self.found_inf > 0, otherwise, value)


class PreconditionedAdamW(FactorOptimizer):
    """AdamW on the gradients that `precondition` makes of all A, all B and their gradients, stacked."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        factors: Sequence[Pair],
        precondition: Callable[[Tensor, Tensor, Tensor, Tensor], Pair],
    ) -> None:
        super().__init__(groups, factors)
        self._precondition = precondition

    def change(self, a_factors: list[Tensor], b_factors: list[Tensor]) -> None:
        sides = a_factors, b_factors
        made = self._precondition(*map(torch.stack, sides), *map(self.gradients, sides))
        for factors, stack in zip(sides, made, strict=True):
            for factor, gradient in zip(factors, stack, strict=True):
                factor.grad = gradient.contiguous()  # fused AdamW does not look at strides
