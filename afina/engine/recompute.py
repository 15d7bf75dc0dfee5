"""Tensors that the backward pass makes again, from others that it has anyway, in the place of keeping them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


@contextmanager
def made_again(x: Tensor, make: Callable[[], Tensor]) -> Iterator[None]:
    """Inside, what the backward pass needs of `x` is not kept: `make` gives it then, with the same bits. It must hold
    nothing with a gradient."""

    address, shape = x.data_ptr(), x.shape  # what is kept has the hooks, too: they must not have x

    def packed(kept: Tensor) -> Tensor | Callable[[], Tensor]:
        return make if kept.data_ptr() == address and kept.shape == shape else kept

    def unpacked(kept: Tensor | Callable[[], Tensor]) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad():
            return kept()

    with saved_tensors_hooks(packed, unpacked):
        yield
