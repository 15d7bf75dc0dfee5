"""Modules and biases that are trained in full (PEFT's `modules_to_save` and `bias`): as copies, the base's own stay as
they are."""

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from afina.lora.config import LoraConfig


@dataclass
class TrainedCopy:
    """A trained copy in place of the module or bias `name` of `owner`. Not `enabled`, the base's own is there."""

    path: str
    owner: nn.Module
    name: str
    original: Any
    trained: Any

    @property
    def enabled(self) -> bool:
        return self._table[self.name] is self.trained

    @enabled.setter
    def enabled(self, on: bool) -> None:
        self._table[self.name] = self.trained if on else self.original

    @property
    def is_module(self) -> bool:
        return isinstance(self.original, nn.Module)

    @property
    def _table(self) -> dict[str, Any]:
        return self.owner._modules if self.is_module else self.owner._parameters

    def tensors(self) -> dict[str, Tensor]:
        """What is saved, by the end of its name after the path."""
        return dict(self.trained.named_parameters()) if self.is_module else {"": self.trained}


def train_copies(model: nn.Module, paths: list[str]) -> None:
    """Replaces the modules or biases at `paths` with trainable copies. What they share, their copies share too."""
    memo: dict[int, Any] = {}
    for path in paths:
        parent, _, name = path.rpartition(".")
        owner = model.get_submodule(parent)
        original = getattr(owner, name)
        trained = copy.deepcopy(original, memo).requires_grad_(True)
        trained_copies(model).append(TrainedCopy(path, owner, name, original, trained))
    for each in trained_copies(model):
        each.enabled = True


def part_copies(model: nn.Module) -> None:
    """Gives each trained copy weights of its own, where several share some."""
    for each in trained_copies(model):
        each.trained = copy.deepcopy(each.trained)
        each.enabled = True


def trained_copies(model: nn.Module) -> list[TrainedCopy]:
    """The trained copies in `model`, listed beside its modules."""
    copies: list[TrainedCopy] = model.__dict__.setdefault("_afina_trained_copies", [])
    return copies


def trained_biases(model: nn.Module, config: LoraConfig, targets: list[str]) -> list[str]:
    """The names of the biases that `config` trains, in a `model` whose `targets` are adapted."""
    if config.bias == "none":
        return []
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]  # a tied bias has several
    biases = [name for name in names if name.rsplit(".", 1)[-1] == "bias"]
    if config.bias == "lora_only":
        adapted = {f"{path}.base.bias" for path in targets}
        biases = [name for name in biases if name in adapted]
    return biases
