"""Where rooms meet that do not know each other: what layers show of themselves, and how one takes another's place."""

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Quantised(Protocol):
    """A frozen layer whose weights are kept in few bits. Its `weight` is made anew whenever it is read, and cannot be trained."""

    def dequantised(self) -> nn.Module:
        """The layer with ordinary numbers for weights."""


def is_conv1d(module: nn.Module) -> bool:
    """Whether `module` is GPT-2's linear layer, known by its name so that transformers need not be imported."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def replace(model: nn.Module, path: str, module: nn.Module) -> None:
    """Puts `module` in the place of the one at `path`."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
