"""What would make the host wait for a card, counted on the processor.

Some tensors are taken for those of a card, and so is all that is computed from them. What reads one of these (a number,
a choice by its numbers, a shape that depends on them) would wait until the card has done all that was asked of it.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# By the names of ATen's operations, below Python: item, bool, int and float are the first.
_READ = {
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "nonzero_static", "masked_select", "unique_dim", "_unique",
    "_unique2", "unique_consecutive", "bincount", "histc", "_linalg_check_errors", "_linalg_eigh", "_linalg_svd",
    "_assert_async", "allclose",
}  # fmt: skip
# Of the processor's tensors these reach no operation.
_PYTHON = {Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.__array__, torch.tensor, torch.as_tensor}


class Waits:
    """`found`, inside `with`: each read of the tensors given, of those `put` in later, and of what comes of them."""

    def __init__(self, *tensors: Tensor) -> None:
        self.found: list[str] = []
        self._there: dict[int, Any] = {}  # storages by address; they stay alive, so that no other gets it
        self._anywhere: dict[int, Any] = {}  # those made on a device that was named, which here is the host's as well
        self.are_allowed = False
        self._modes = _Dispatch(self), _Function(self)
        for tensor in tensors:
            self.put(tensor)

    def put(self, tensor: Tensor) -> None:
        """Takes the tensor for one of the card's from now on."""
        storage = tensor.untyped_storage()
        self._there[storage._cdata] = storage

    def has(self, values: Any) -> bool:
        tensors = (each for each in tree_leaves(values) if isinstance(each, Tensor))
        return any(tensor.untyped_storage()._cdata in self._there for tensor in tensors)

    def may_be(self, values: Any) -> None:
        """Takes the tensors for ones that may be the card's."""
        for each in tree_leaves(values):
            if isinstance(each, Tensor):
                storage = each.untyped_storage()
                self._anywhere[storage._cdata] = storage

    def is_the_hosts(self, tensor: Tensor) -> bool:
        return not self.has(tensor) and tensor.untyped_storage()._cdata not in self._anywhere

    def note(self, name: str) -> None:
        frames = [each for each in traceback.extract_stack() if "/afina/" in each.filename]
        where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
        self.found.append(f"{name} at {where}")

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Reads inside are not counted: what they make is the host's."""
        self.are_allowed = True
        try:
            yield
        finally:
            self.are_allowed = False

    def __enter__(self) -> "Waits":
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Dispatch(TorchDispatchMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        there = not self._waits.are_allowed and self._waits.has((args, kwargs))
        name = func.overloadpacket.__name__
        by_choice = name in ("index", "index_put", "index_put_") and any(
            each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1]
        )
        without_size = name == "repeat_interleave" and not (kwargs or {}).get("output_size")
        to_host = name == "copy_" and self._waits.has(args[1]) and self._waits.is_the_hosts(args[0])
        if there and (name in _READ or by_choice or without_size or to_host):
            self._waits.note(name)
        out = func(*args, **(kwargs or {}))
        if there:
            for each in tree_leaves(out):
                if isinstance(each, Tensor):
                    self._waits.put(each)
        return out


class _Function(TorchFunctionMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        to_host = func is Tensor.to and "cpu" in (*(a for a in args[1:] if isinstance(a, str)), kwargs.get("device"))
        if (func in _PYTHON or to_host) and not self._waits.are_allowed and self._waits.has(args):
            self._waits.note(func.__name__)
        out = func(*args, **kwargs)
        if kwargs.get("device") is not None:
            self._waits.may_be(out)
        return out


class Copies(TorchDispatchMode):
    """`found`, inside `with`: what is copied between the host and another device (torch's `meta`), but for what was
    `pinned` and is not waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.pinned: dict[int, Any] = {}

    def pin(self, tensor: Tensor) -> Tensor:
        """In the place of `Tensor.pin_memory`."""
        storage = tensor.untyped_storage()
        self.pinned[storage._cdata] = storage
        return tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name in ("_to_copy", "copy_"):
            source = args[1] if name == "copy_" else args[0]
            fetched = source.untyped_storage()._cdata in self.pinned and (
                kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))
            )
            if source.device != out.device and not fetched:
                frames = [each for each in traceback.extract_stack() if "/afina/" in each.filename]
                where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
                self.found.append(f"{name} of {tuple(source.shape)} at {where}")
        return out
