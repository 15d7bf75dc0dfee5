"""The MLP's activations, plain and gated. T tokens, I the MLP's inner width."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


# By transformers' names. A gate has a number too: the kernels' `kind`.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "relu": F.relu,
}
GATES: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {"silu": (0, F.silu), "gelu_pytorch_tanh": (1, _gelu_tanh)}


def gated_by_torch(gate_up_TI: Tensor, kind: str) -> Tensor:
    """`Ops.gated` in torch on any device."""
    gate, up = gate_up_TI.chunk(2, -1)
    return GATES[kind][1](gate) * up
