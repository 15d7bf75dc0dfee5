"""One matrix product for linear layers that read the same input, their low-rank updates included.

T tokens, I inputs, O outputs (of all parts together), R ranks (of all parts together).

With Ŵ = [W; A], the frozen weights and below them the adapters' A, one product gives ŷ = x Ŵᵀ = [y₀ | x Aᵀ], to which the
small s·(x Aᵀ)Bᵀ are added part by part. Backward, with dlow = s·dy B, one product gives dx = [dy | dlow] Ŵ as well; then
dA = dlowᵀ x and dB = s·dyᵀ (x Aᵀ). The frozen weights live in Ŵ alone: the layers' own `weight` are views of its rows. Where a
layer keeps its weights in blocks (blocks.py), Ŵ is written out just before a product needs it.
"""

import copy
import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afina.engine import kernels
from afina.engine.blocks import BlockLinear
from afina.engine.frozen import (
    Conv1D,
    Held,
    Unpacked,
    input_size,
    kept_of,
    number_type,
    output_sizes,
    row_view,
    transposed,
)
from afina.engine.kernels import Kernels
from afina.engine.low_rank import LowRank, Update, outer

# Rows up to which a product is bound by reading the weights from memory, and our own kernel is faster than the matrix library.
FEW = 8 if torch.cpu._is_amx_tile_supported() else 32


class Joined:
    """The layers `names` of `owner`, applied to one input: (T, I) → (T, O), the outputs side by side.

    The layers may be plain, or adapted by a `LowRank` layer at any time; anything else in their place is called as it is.
    """

    def __init__(self, owner: nn.Module, *names: str) -> None:
        self._owner, self._names = owner, names
        self._store: Tensor | None = None
        self._ready: _Ready | None = None

    def __call__(self, x_TI: Tensor, fused: Kernels | None = None, steady: bool = False) -> Tensor:
        """`steady` promises that the layers are as they were at the last call, which saves looking."""
        # After a pass in training the weights change, and fused optimisers do not count it as a new version.
        keep = not (torch.is_grad_enabled() or self._owner.training)
        ready = self._ready if keep else None
        layers = self._owner._modules
        if ready is None or not (steady or ready.holds(tuple(layers[name] for name in self._names), fused)):
            made = self._prepare([layers[name] for name in self._names], fused)
            if made is None:
                self._ready = None
                return torch.cat([getattr(self._owner, name)(x_TI) for name in self._names], -1)
            ready = made
            self._ready = made if keep else None
        if not torch.is_grad_enabled() or not (x_TI.requires_grad or ready.trained()):
            return ready.few(x_TI) if ready.serves(x_TI) else ready.product(x_TI)[0]
        y: Tensor = _Product.apply(x_TI, ready, *ready.parameters())  # type: ignore[no-untyped-call]
        return y

    @torch.inference_mode(False)  # what is kept serves training too
    @torch.no_grad()
    def _prepare(self, layers: list[Any], fused: Kernels | None) -> "_Ready | None":
        """What the product needs, from the layers as they are now; None where they cannot be joined."""
        if not all(_joinable(layer) for layer in layers):
            return None
        frozen = [getattr(layer, "base", layer) for layer in layers]
        adapters: list[LowRank | None] = [layer if getattr(layer, "enabled", False) else None for layer in layers]
        present = [a for a in adapters if a is not None]
        ranks = sum(a.lora_a.shape[0] for a in present)
        weights: Held | Unpacked
        if any(isinstance(layer, BlockLinear) for layer in frozen):
            low = torch.empty(
                ranks, input_size(frozen[0]), dtype=number_type(frozen[0]), device=kept_of(frozen[0]).device
            )
            weights = Unpacked(frozen, low, fused)
        else:
            store = self._joined(frozen, ranks)
            weights, low = Held(frozen, store), store[sum(output_sizes(frozen)) :]
        at = 0
        for adapter in present:
            low[at : at + len(adapter.lora_a)].copy_(adapter.lora_a)
            at += len(adapter.lora_a)
        bias = self._bias(frozen, sum(output_sizes(frozen)) + ranks, low.dtype)
        return _Ready(tuple(layers), frozen, adapters, weights, low, bias, fused)

    def _joined(self, frozen: list[Any], ranks: int) -> Tensor:
        """Ŵ, made anew where the layers' weights are no longer its rows or where there is no room for the adapters' A."""
        if len(frozen) == 1 and not ranks:
            return row_view(frozen[0])
        rows = sum(output_sizes(frozen)) + ranks
        store = self._store
        if (
            store is None
            or len(store) < rows
            or store.dtype != frozen[0].weight.dtype
            or not self._holds(store, frozen)
        ):
            store = self._store = self._join(frozen, rows)
        return store[:rows]

    def _holds(self, store: Tensor, frozen: list[Any]) -> bool:
        at = store.data_ptr()
        for layer in frozen:
            if layer.weight.data_ptr() != at:
                return False
            at += layer.weight.numel() * store.element_size()
        return True

    def _join(self, frozen: list[Any], rows: int) -> Tensor:
        weights = [row_view(layer) for layer in frozen]
        store = weights[0].new_empty(rows, weights[0].shape[1])
        at = 0
        for layer, weight in zip(frozen, weights, strict=True):
            mine = store[at : at + len(weight)]
            mine.copy_(weight)
            layer.weight.data = mine.T if transposed(layer) else mine
            at += len(weight)
        return store

    def _bias(self, frozen: list[Any], rows: int, dtype: torch.dtype) -> Tensor | None:
        """The layers' biases, and zeros for the adapters' A."""
        if all(layer.bias is None for layer in frozen):
            return None
        bias = torch.zeros(rows, dtype=dtype, device=kept_of(frozen[0]).device)
        at = 0
        for layer, n in zip(frozen, output_sizes(frozen), strict=True):
            if layer.bias is not None:
                bias[at : at + n] = layer.bias
            at += n
        return bias

    def __deepcopy__(self, memo: dict[int, Any]) -> "Joined":
        """A copy over the copied layers, which joins them for itself."""
        return Joined(copy.deepcopy(self._owner, memo), *self._names)


def _joinable(layer: Any) -> bool:
    frozen = getattr(layer, "base", layer)
    if not isinstance(frozen, nn.Linear | Conv1D):
        return False
    if frozen is layer or not getattr(layer, "enabled", True):
        return True
    return (
        getattr(layer, "additive", False) and hasattr(layer, "lora_a") and not (layer.training and layer.dropout.p > 0)
    )


class _Ready:
    """A joined product in the state that its layers had when it was made: Ŵ, its rows A (R, I), the updates, the bias."""

    def __init__(
        self, layers: tuple[Any, ...], frozen: list[Any], adapters: list[LowRank | None], weights: Held | Unpacked,
        low_RI: Tensor, bias: Tensor | None, fused: Kernels | None,
    ) -> None:  # fmt: skip
        self.layers, self.frozen, self.adapters = layers, frozen, adapters
        self.weights, self.low, self.bias, self.fused = weights, low_RI, bias, fused
        self.outputs = output_sizes(frozen)
        self.total = sum(self.outputs)
        # (update, its columns of y, its columns of x Aᵀ)
        self.places: list[tuple[Update, slice, slice]] = []
        at = rank_at = 0
        for adapter, n in zip(adapters, self.outputs, strict=True):
            if adapter is not None:
                update = Update(adapter, n, low_RI.dtype, fused)
                self.places.append((update, slice(at, at + n), slice(rank_at, rank_at + update.rank)))
                rank_at += update.rank
            at += n
        fast = low_RI.shape[1] % kernels.LANES == 0 and all(update.fast for update, _, _ in self.places)
        self.outer_fused = fused if fast else None  # for dA
        self._wrapped = [layer for layer, own in zip(layers, frozen, strict=True) if layer is not own]
        self._kept = [kept_of(layer) for layer in frozen]
        # Layers that are switched off may be of any kind.
        self._adapters = [
            p for layer in self._wrapped if hasattr(layer, "lora_a") for p in (layer.lora_a, layer.lora_b)
        ]
        self._state = self._look()
        self._parts: tuple[Any, list[Tensor]] | None = None

    def _look(self) -> list[Any]:
        return [
            *[kept.data_ptr() for kept in self._kept],
            *[id(layer.bias) for layer in self.frozen],
            *[parameter._version for parameter in self._adapters],
            *[layer.enabled for layer in self._wrapped],
        ]

    def holds(self, layers: tuple[Any, ...], fused: Kernels | None) -> bool:
        """Whether these are the layers, with weights that have not changed."""
        if layers != self.layers or (fused is None) != (self.fused is None) or self._look() != self._state:
            return False
        return all(kept_of(layer) is kept for layer, kept in zip(self.frozen, self._kept, strict=True))

    def parameters(self) -> list[Tensor]:
        """What may get a gradient, in the order in which `_Product` returns them."""
        tensors = [p for a in self.adapters if a is not None for p in (a.lora_a, a.lora_b)]
        return tensors + [p for f in self.frozen for p in f._parameters.values() if p is not None and p.requires_grad]

    def trained(self) -> bool:
        return any(parameter.requires_grad for parameter in self.parameters())

    def product(self, x_TI: Tensor) -> tuple[Tensor, Tensor | None]:
        """y (T, O), and x Aᵀ (T, R), beside which it lies in memory."""
        joined = self.weights.product(x_TI, self.bias)
        if not self.places:
            return joined, None
        y, low = joined[:, : self.total], joined[:, self.total :]
        for update, outputs, ranks in self.places:
            update.add(y[:, outputs], low[:, ranks])
        return y, low

    def serves(self, x_TI: Tensor) -> bool:
        """Whether `few` can take the product, and is the faster one."""
        return (
            self.fused is not None
            and self.fused.multiplies_pairs
            and x_TI.shape[0] <= FEW
            and x_TI.dtype == self.low.dtype == torch.bfloat16
            and x_TI.shape[1] % (2 * kernels.LANES) == 0
            and self.weights.plain
        )

    def few(self, x_TI: Tensor) -> Tensor:
        """y (T, O) for few rows: one pass over the weights as fast as memory gives them, the updates in the same sums."""
        assert self.fused is not None
        parts, _ = self._parts or self._few_parts()
        y = x_TI.new_empty(x_TI.shape[0], self.total)
        self.fused.call(
            "few_rows", x_TI, x_TI.stride(0), self.bias, y, self.total, ctypes.addressof(parts), len(parts),
            *x_TI.shape, torch.get_num_threads(),
        )  # fmt: skip
        return y

    def _few_parts(self) -> tuple[Any, list[Tensor]]:
        """What the kernel is told of the updates, and the tensors that this points to."""
        parts, kept = [], []
        at = a = 0
        for adapter, n, place in zip(self.adapters, self.outputs, self.weights.places(), strict=True):
            if adapter is None:
                parts.append(kernels.Part(at, at + n, 0, None, None, *place))
            else:
                rank = adapter.lora_b.shape[1]
                b = F.pad(
                    (adapter.lora_b.detach() * adapter.scaling).to(self.low.dtype), (0, -rank % (2 * kernels.LANES))
                )
                parts.append(kernels.Part(at, at + n, rank, self.low[a].data_ptr(), b.data_ptr(), *place))
                kept.append(b)
                a += rank
            at += n
        self._parts = (kernels.Part * len(parts))(*parts), kept
        return self._parts


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ready: _Ready, *_: Tensor) -> Tensor:
        y, low = ready.product(x)
        ctx.ready = ready
        ctx.save_for_backward(x, low)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, low = ctx.saved_tensors
        ready: _Ready = ctx.ready
        grads: list[Tensor] = []
        if low is None:
            dx = ready.weights.back(dy) if ctx.needs_input_grad[0] else None
        else:
            whole = _with_room(dy, ready.total + len(ready.low))
            dy, dlow = whole[:, : ready.total], whole[:, ready.total :]
            for update, outputs, ranks in ready.places:
                update.project(dy[:, outputs], dlow[:, ranks])
            dx = ready.weights.back(whole) if ctx.needs_input_grad[0] else None
            da = outer(x, dlow, 1.0, ready.outer_fused)
            for update, outputs, ranks in ready.places:
                grads += (da[:, ranks].T, update.gradient(dy[:, outputs], low[:, ranks]))
        own = []
        for layer, d in zip(ready.frozen, dy.split(ready.outputs, 1), strict=True):
            if kept_of(layer).requires_grad:
                dw = d.T @ x
                own.append(dw.T if transposed(layer) else dw)
            if layer.bias is not None and layer.bias.requires_grad:
                own.append(d.sum(0))
        return dx, None, *grads, *own


def _with_room(dy: Tensor, columns: int) -> Tensor:
    """dy (T, O) as the first columns of a (T, `columns`) tensor: in place where its rows have the room beside them."""
    room = dy.untyped_storage().nbytes() // dy.element_size()
    if dy.stride() == (columns, 1) and dy.storage_offset() == 0 and room >= len(dy) * columns:
        return dy.as_strided((len(dy), columns), (columns, 1))
    whole = dy.new_empty(len(dy), columns)
    whole[:, : dy.shape[1]] = dy
    return whole
