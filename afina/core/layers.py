"""Where rooms meet that do not know each other: what layers show of themselves, how one takes another's place,
evaluation mode, and whether weights are numbers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class Quantised(Protocol):
    """A frozen layer whose weights are quantised, in its `blocks`. Its `weight` is dequantised anew whenever it is
    read, and cannot be trained."""

    blocks: nn.Module

    def dequantised(self) -> nn.Module:
        """The layer with an ordinary weight."""


def weight_holder(layer: Any) -> Any:
    """What holds the weight of a layer: layers that are tied have the same."""
    return layer.blocks if isinstance(layer, Quantised) else layer.weight


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


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that hold NaN or infinity. Their extremes tell, in one pass and without a copy:
    `isfinite` takes several times as long."""
    return [
        name
        for name, value in tensors.items()
        if value.is_floating_point() and value.numel() and not _extremes(value).isfinite().all()
    ]


def _extremes(value: Tensor) -> Tensor:
    eight_bits = value.element_size() == 1  # which torch does not compare
    return torch.stack((value.float() if eight_bits else value).aminmax())
