"""Helpers for autograd functions over fused kernels."""

from typing import Any

import torch
from torch import Tensor


class _NoContext:
    """The context of a forward pass that no backward pass follows."""

    def save_for_backward(self, *_: Any) -> None: ...

    def set_materialize_grads(self, value: bool) -> None: ...


def apply(function: Any, *arguments: Any) -> Any:
    """Applies an autograd function, without autograd's bookkeeping where no gradient is wanted."""
    return function.apply(*arguments) if torch.is_grad_enabled() else function.forward(_NoContext(), *arguments)


def empty_with_stride(x: Tensor, stride: int) -> Tensor:
    """New memory of x's shape and this row stride: a gradient is laid out like its tensor, with the same spare
    columns."""
    rows, columns = x.shape
    return x.new_empty(rows, max(columns, stride))[:, :columns]  # an expanded row has stride 0
