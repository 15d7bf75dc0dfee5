"""A decoding step as the list of its kernel calls: the next steps, in the same memory, are these calls and no more.

One token per text takes a few hundred calls of some ten microseconds each, and Python as long again between them. The
calls of a step are recorded with their arguments, and what they point to stays as it is; a later step writes its inputs
where those of the recorded one stood, and repeats the calls.

That is right only where nothing but kernels computes with what the step is given or makes. So each operation of torch
is looked at while the tape records: allocations and views are passed over, and what is made of weights alone is the
same in every step. Anything else spoils the tape.
"""

from collections.abc import Callable, Sequence
from threading import Lock, get_ident
from typing import Any

from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from afina.engine.kernels import Kernels

_ALLOCATIONS = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty"}
_recording = Lock()  # the kernels are one for all threads


class Tape:
    """Of one step, which can be repeated as long as it is not `spoiled`. `inputs` are the tensors that differ from step
    to step; whatever else the step reads must be the same."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        self.spoiled = False
        self._inputs = tuple(inputs)
        self._output: Tensor | None = None
        self._calls: list[tuple[Any, list[Any]]] = []
        self._kept: list[Any] = []  # tensors and structures whose addresses the calls have
        self._live = {_address(each) for each in inputs}

    def record(self, fused: Kernels, step: Callable[[], Tensor]) -> Tensor:
        """Runs the step; its output. Another thread that records meanwhile spoils this tape."""
        if not _recording.acquire(blocking=False):
            self.spoiled = True
            return step()
        thread = get_ident()

        def add(function: Any, addresses: list[Any], arguments: tuple[Any, ...]) -> None:
            if get_ident() == thread:
                self._calls.append((function, addresses))
                self._kept.append(arguments)

        fused.on_call = add
        try:
            with _Watch(self):
                self._output = step()
        finally:
            fused.on_call = None
            _recording.release()
        self._kept.append(step)
        if self.spoiled:
            self._calls, self._kept = [], []
        return self._output

    def look(self, function: Any, before: list[Tensor], after: list[Tensor]) -> None:
        """At an operation of torch, and at what went into and came out of it."""
        self._kept += after
        if function._schema.name in _ALLOCATIONS:
            self._live |= {_address(each) for each in after}
            return
        addresses = {_address(each) for each in before}
        is_view = not function._schema.is_mutable and {_address(each) for each in after} <= addresses
        if not is_view and addresses & self._live:
            self.spoiled = True

    def repeat(self, *inputs: Tensor) -> Tensor:
        """The output of the step on other inputs; the next one overwrites it."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        for function, addresses in self._calls:
            function(*addresses)
        assert self._output is not None, "recorded"
        return self._output


class _Watch(TorchDispatchMode):
    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tape = tape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._tape.look(func, _tensors((args, kwargs)), _tensors(out))
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
