"""Where rooms meet that do not know each other: what layers show of themselves, how one takes another's place, and
evaluation mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Quantised(Protocol):
    """A frozen layer whose weights are quantised. Its `weight` is dequantised anew whenever it is read, and cannot
    be trained."""

    def dequantised(self) -> nn.Module:
        """The layer with an ordinary weight."""


def is_conv1d(module: nn.Module) -> bool:
    """Whether `module` is GPT-2's linear layer, known by its name so that transformers need not be imported."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def replace(model: nn.Module, path: str, module: nn.Module) -> None:
    """Puts `module` in the place of the one at `path`."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Inside the block `module` is in evaluation mode; afterwards in the mode it was in, whatever happens."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)
