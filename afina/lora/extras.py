"""What may be trained beside the adapted layers: biases, whole modules, rows of the embedding. The base's own tensors stay as they are."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from afina.lora.layer import Wrapper


@dataclass
class Swap:
    """A trained copy in the place of a bias or module `name` of `owner`; not `enabled`, the base's own is there."""

    path: str
    owner: nn.Module
    name: str
    own: Any
    trained: Any

    @property
    def enabled(self) -> bool:
        return self._table[self.name] is self.trained

    @enabled.setter
    def enabled(self, on: bool) -> None:
        self._table[self.name] = self.trained if on else self.own

    @property
    def _table(self) -> dict[str, Any]:
        return self.owner._modules if isinstance(self.own, nn.Module) else self.owner._parameters

    def tensors(self) -> dict[str, Tensor]:
        """What is saved, by the end of its name after the path."""
        if isinstance(self.trained, nn.Module):
            return dict(self.trained.named_parameters())
        return {"": self.trained}


def swap(model: nn.Module, paths: list[str]) -> None:
    """Puts trainable copies of the biases or modules at `paths` in their places. What they share they go on sharing."""
    memo: dict[int, Any] = {}
    for path in paths:
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        own = getattr(owner, name)
        swaps(model).append(Swap(path, owner, name, own, copy.deepcopy(own, memo).requires_grad_(True)))
    for each in swaps(model):
        each.enabled = True


def swaps(model: nn.Module) -> list[Swap]:
    """The swaps in `model`, kept beside its modules."""
    found: list[Swap] = model.__dict__.setdefault("_afina_swaps", [])
    return found


class TokenRows(Wrapper):
    """An embedding with `rows` of its own for the `tokens`, by default the base's. ids are (…), the output is (…, width)."""

    def __init__(self, base: Any, tokens: tuple[int, ...], rows: nn.Parameter | None = None) -> None:
        super().__init__(base)
        self.tokens = tokens
        self.rows = nn.Parameter(base.weight[list(tokens)].detach().float().clone()) if rows is None else rows
        place = torch.full((len(base.weight),), -1, device=base.weight.device)
        place[list(tokens)] = torch.arange(len(tokens), device=base.weight.device)
        self.register_buffer("_place", place, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.base(ids)
        if not self.enabled:
            return y
        place = self._place[ids]  # type: ignore[index]
        rows = self.rows.to(y.dtype)[place.clamp(min=0)] * getattr(self.base, "embed_scale", 1.0)
        return torch.where((place >= 0)[..., None], rows, y)


class TokenLogits(Wrapper):
    """An output head that is tied to an embedding with rows of its own. x is (…, width), the logits are (…, words)."""

    def __init__(self, base: Any, rows: TokenRows) -> None:
        super().__init__(base)
        self._of = (rows,)  # not a submodule: its rows belong to the embedding

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        if not self.enabled:
            return y
        (rows,) = self._of
        return y.index_copy(-1, torch.tensor(rows.tokens, device=y.device), x @ rows.rows.to(x.dtype).T)
