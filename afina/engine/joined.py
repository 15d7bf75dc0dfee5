"""One matrix product for linear layers that read the same input, their low-rank updates included.

T tokens, I inputs, O outputs (of all layers together), R ranks (of all adapters together).

With Ŵ = [W; A], the frozen weights and below them the adapters' A, one product gives ŷ = x Ŵᵀ = [y₀ | x Aᵀ], to which
the small s·(x Aᵀ)Bᵀ are added layer by layer. Backward, with dlow = s·dy B, one product gives dx = [dy | dlow] Ŵ as
well; then dA = dlowᵀ x and dB = s·dyᵀ (x Aᵀ). The frozen weights exist in Ŵ alone: the layers' own `weight` are views
of its rows. Where a layer keeps its weights in blocks (blocks.py), Ŵ is dequantised just before a product needs it.

Example: q (64, 48) and v (96, 48) with adapters of rank 16 share a Ŵ of (64 + 96 + 16 + 16, 48); x of (T, 48) gives T
rows of 192, of which the last 32 are x Aᵀ; q's y is columns 0 to 64 plus columns 160 to 176 times s·Bᵀ.
"""

import copy
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from afina.core.errors import AdapterError
from afina.engine.blocks import BlockLinear
from afina.engine.joined_weights import (
    DenseWeights,
    QuantisedWeights,
    dtype_of,
    input_size,
    is_transposed,
    output_sizes,
    storage_of,
    weight_OI,
)
from afina.engine.layers import Conv1D
from afina.engine.mixed import Place, RowUpdates
from afina.engine.ops.by_torch import TORCH, Ops
from afina.engine.ops.few_rows import FewRows, Part
from afina.engine.ops.low_rank import LowRankLayer, LowRankUpdate

_ROOM = 16  # ranks of each layer, for which weights that are read leave rows: the default of adapters


class JoinedLinear:
    """The layers `names` of `owner`, applied to one input: (T, I) → (T, O), the outputs side by side.

    The layers may be plain, or wrapped by a `LowRankLayer` at any time; layers of any other kind are called one by one.
    """

    def __init__(self, owner: nn.Module, *names: str, number: int = 0) -> None:
        self._owner, self._names = owner, names
        self._number = number  # among those of a decoder, by which packed updates (mixed.py) know it
        self._weights: Tensor | None = None  # Ŵ, with room for the ranks that were needed so far
        self._product: _JoinedProduct | None = None  # reused while nothing changes

    def __call__(
        self, x_TI: Tensor, ops: Ops = TORCH, steady: bool = False, updates: RowUpdates | None = None
    ) -> Tensor:
        """`steady` promises that no layer has changed since the last call, which saves checking. With `updates`, which
        some of the tokens have and which get no gradients, layers must have no adapter of their own; raises
        `AdapterError`."""
        # After a training step the weights have changed, and fused optimisers do not count it as a new version.
        reusable = not (torch.is_grad_enabled() or self._owner.training)
        product = self._product if reusable else None
        layers = self._owner._modules
        if product is None or not (steady or product.is_current(tuple(layers[name] for name in self._names), ops)):
            product = self._prepare([layers[name] for name in self._names], ops)
            if product is None:
                self._product = None
                _expect_bare(updates is None)
                return torch.cat([getattr(self._owner, name)(x_TI) for name in self._names], -1)
            self._product = product if reusable else None
            _expect_bare(updates is None or not product.updates)
        if not torch.is_grad_enabled() or not (x_TI.requires_grad or product.is_trained()):
            few = product.few_rows(x_TI)
            y = product.forward(x_TI)[0] if few is None else few
            if updates is not None:
                updates.add(self._number, x_TI, y, ops.kernels)
            return y
        assert updates is None, "they get no gradients"
        return _JoinedFunction.apply(x_TI, product, *product.parameters())  # type: ignore[no-any-return, no-untyped-call]

    def places(self) -> dict[str, Place]:
        """Where each of the layers stands, by its name."""
        frozen = [getattr(layer, "base", layer) for layer in (getattr(self._owner, name) for name in self._names)]
        ends = list(accumulate(output_sizes(frozen)))
        bounds = zip([0, *ends], ends, frozen, strict=False)
        places = [Place(self._number, begin, end, input_size(layer)) for begin, end, layer in bounds]
        return dict(zip(self._names, places, strict=True))

    @torch.no_grad()
    def take(self, name: str, weight: Tensor) -> Tensor:
        """A weight of the layer `name`, as it is read, in its rows of Ŵ, which has room for adapters' A: so that
        none is in memory twice. One of another shape than the layer's is given back."""
        layer = getattr(self._owner, name)
        if weight.shape != layer.weight.shape:
            return weight
        places = self.places()
        place = places[name]
        if self._weights is None:
            rows = max(each.end for each in places.values()) + _ROOM * len(places)
            self._weights = weight.new_empty(rows, place.inputs)
        rows_OI = self._weights[place.begin : place.end]
        return (rows_OI.T if is_transposed(layer) else rows_OI).copy_(weight)

    @torch.inference_mode(False)  # training may use these tensors later
    @torch.no_grad()
    def _prepare(self, layers: list[Any], ops: Ops) -> "_JoinedProduct | None":
        """The product of the layers as they are now; None where they cannot be joined."""
        if not all(_is_joinable(layer) for layer in layers):
            return None
        frozen = [getattr(layer, "base", layer) for layer in layers]
        adapters: list[LowRankLayer | None] = [layer if getattr(layer, "enabled", False) else None for layer in layers]
        present = [a for a in adapters if a is not None]
        ranks = sum(a.lora_a.shape[0] for a in present)
        ranks += -ranks % ops.ranks
        weights: DenseWeights | QuantisedWeights
        if any(isinstance(layer, BlockLinear) for layer in frozen):
            low = torch.empty(
                ranks, input_size(frozen[0]), dtype=dtype_of(frozen[0]), device=storage_of(frozen[0]).device
            )
            weights = QuantisedWeights(frozen, low, ops)
        else:
            joined = self._joined_weights(frozen, ranks)
            weights, low = DenseWeights(frozen, joined), joined[sum(output_sizes(frozen)) :]
        at = 0
        for adapter in present:
            low[at : at + len(adapter.lora_a)].copy_(adapter.lora_a)
            at += len(adapter.lora_a)
        if at < len(low):
            low[at:] = 0
        bias = self._joined_bias(frozen, sum(output_sizes(frozen)) + ranks, low.dtype)
        return _JoinedProduct(tuple(layers), frozen, adapters, weights, low, bias, ops)

    def _joined_weights(self, frozen: list[Any], ranks: int) -> Tensor:
        """Ŵ, made anew where the layers' weights are no longer its rows or where it has too few rows for the adapters'
        A."""
        if len(frozen) == 1 and not ranks:
            return weight_OI(frozen[0])
        rows = sum(output_sizes(frozen)) + ranks
        joined = self._weights
        if (
            joined is None
            or len(joined) < rows
            or joined.dtype != frozen[0].weight.dtype
            or not _are_rows_of(joined, frozen)
        ):
            joined = self._weights = _join(frozen, rows)
        return joined[:rows]

    def _joined_bias(self, frozen: list[Any], rows: int, dtype: torch.dtype) -> Tensor | None:
        """The layers' biases, and zeros for the adapters' A."""
        if all(layer.bias is None for layer in frozen):
            return None
        bias = torch.zeros(rows, dtype=dtype, device=storage_of(frozen[0]).device)
        at = 0
        for layer, n in zip(frozen, output_sizes(frozen), strict=True):
            if layer.bias is not None:
                bias[at : at + n] = layer.bias
            at += n
        return bias

    def __deepcopy__(self, memo: dict[int, Any]) -> "JoinedLinear":
        """A copy over the copied layers, which joins them for itself."""
        return JoinedLinear(copy.deepcopy(self._owner, memo), *self._names, number=self._number)


def _expect_bare(bare: bool) -> None:
    if not bare:
        raise AdapterError(
            "an adapter is in place in the model, and rows of the batch bring adapters of their own",
            "take it out of the model (`Adapters.use(None)`), or merge it, before rows have their own",
        )


def _are_rows_of(joined: Tensor, frozen: list[Any]) -> bool:
    """Whether the layers' weights are views of the first rows of `joined`."""
    address = joined.data_ptr()
    for layer in frozen:
        if layer.weight.data_ptr() != address:
            return False
        address += layer.weight.numel() * joined.element_size()
    return True


def _join(frozen: list[Any], rows: int) -> Tensor:
    """The layers' weights as the first of `rows` rows of a new tensor, of which their own become views."""
    weights = [weight_OI(layer) for layer in frozen]
    joined = weights[0].new_empty(rows, weights[0].shape[1])
    at = 0
    for layer, weight in zip(frozen, weights, strict=True):
        view = joined[at : at + len(weight)]
        view.copy_(weight)
        layer.weight.data = view.T if is_transposed(layer) else view
        at += len(weight)
    return joined


def _is_joinable(layer: Any) -> bool:
    frozen = getattr(layer, "base", layer)
    if not isinstance(frozen, nn.Linear | Conv1D):
        return False
    if frozen is layer or not getattr(layer, "enabled", True):
        return True
    return (
        getattr(layer, "additive", False) and hasattr(layer, "lora_a") and not (layer.training and layer.dropout.p > 0)
    )


class _JoinedProduct:
    """The joined product of layers in the state in which they were when it was made: Ŵ, its rows A (R, I), updates,
    bias."""

    def __init__(
        self, layers: tuple[Any, ...], frozen: list[Any], adapters: list[LowRankLayer | None],
        weights: DenseWeights | QuantisedWeights, low_RI: Tensor, bias: Tensor | None, ops: Ops,
    ) -> None:  # fmt: skip
        self.layers, self.frozen, self.adapters = layers, frozen, adapters
        self.weights, self.low, self.bias, self.ops = weights, low_RI, bias, ops
        self.outputs = output_sizes(frozen)
        self.total = sum(self.outputs)
        # (update, its s, its columns of y, its columns of x Aᵀ)
        self.updates: list[tuple[LowRankUpdate, float, slice, slice]] = []
        column = rank = 0
        for adapter, n in zip(adapters, self.outputs, strict=True):
            if adapter is not None:
                update, r = ops.low_rank(adapter.lora_b, adapter.scaling, low_RI.dtype), adapter.lora_b.shape[1]
                columns, ranks = slice(column, column + n), slice(rank, rank + r)
                self.updates.append((update, adapter.scaling, columns, ranks))
                rank += r
            column += n
        self.ranks = rank  # the rows of `low` beyond are zeros
        self._wrappers = [layer for layer, own in zip(layers, frozen, strict=True) if layer is not own]
        self._storages = [storage_of(layer) for layer in frozen]
        # Layers that are disabled may be of any kind.
        self._adapter_parameters = [
            p for layer in self._wrappers if hasattr(layer, "lora_a") for p in (layer.lora_a, layer.lora_b)
        ]
        self._state = self._current_state()

    def _current_state(self) -> list[Any]:
        return [
            *[storage.data_ptr() for storage in self._storages],
            *[id(layer.bias) for layer in self.frozen],
            *[layer.bias._version for layer in self.frozen if layer.bias is not None],  # copies of them are joined
            *[parameter._version for parameter in self._adapter_parameters],
            *[layer.enabled for layer in self._wrappers],
        ]

    def is_current(self, layers: tuple[Any, ...], ops: Ops) -> bool:
        """Whether these are the layers, with weights that have not changed."""
        if layers != self.layers or ops is not self.ops or self._current_state() != self._state:
            return False
        return all(storage_of(layer) is own for layer, own in zip(self.frozen, self._storages, strict=True))

    def parameters(self) -> list[Tensor]:
        """What may get a gradient, in the order in which `_JoinedFunction` returns them."""
        tensors = [p for a in self.adapters if a is not None for p in (a.lora_a, a.lora_b)]
        return tensors + [p for f in self.frozen for p in f._parameters.values() if p is not None and p.requires_grad]

    def is_trained(self) -> bool:
        return any(parameter.requires_grad for parameter in self.parameters())

    def forward(self, x_TI: Tensor) -> tuple[Tensor, Tensor | None]:
        """y (T, O), and x Aᵀ (T, R): columns of one tensor."""
        joined = self.weights.product(x_TI, self.bias)
        if not self.updates:
            return joined, None
        y, low = joined[:, : self.total], joined[:, self.total :]
        for update, _, outputs, ranks in self.updates:
            update.add(y[:, outputs], low[:, ranks])
        return y, low

    def few_rows(self, x_TI: Tensor) -> Tensor | None:
        """y (T, O) for few rows, where there is a faster way to it than `forward`."""
        if x_TI.shape[0] > self.ops.few or x_TI.dtype != self.low.dtype or self._few_rows is None:
            return None
        return self._few_rows.product(x_TI)

    @cached_property
    def _few_rows(self) -> FewRows | None:
        parts = []
        updates = iter(self.updates)
        for adapter, n, (weights, kind) in zip(self.adapters, self.outputs, self.weights.stored(), strict=True):
            a_RI = b_OR = None
            if adapter is not None:
                _, scaling, _, ranks = next(updates)
                a_RI, b_OR = self.low[ranks], (adapter.lora_b.detach() * scaling).to(self.low.dtype)
            parts.append(Part(n, weights, kind, a_RI, b_OR))
        return self.ops.few_rows(parts, self.low.shape[1], self.bias)


class _JoinedFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, product: _JoinedProduct, *_: Tensor) -> Tensor:
        y, low = product.forward(x)
        ctx.product = product
        trained = low is not None or product.is_trained()
        ctx.save_for_backward(x if trained else None, None if low is None else low.clone())  # no view of all outputs
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, low = ctx.saved_tensors
        product: _JoinedProduct = ctx.product
        grads: list[Tensor] = []
        if low is None:
            dx = product.weights.product_back(dy) if ctx.needs_input_grad[0] else None
        else:
            joined = _widened(dy, product.total + len(product.low))
            dy, dlow = joined[:, : product.total], joined[:, product.total :]
            for update, _, outputs, ranks in product.updates:
                update.project(dy[:, outputs], dlow[:, ranks])
            if product.ranks < len(product.low):
                dlow[:, product.ranks :] = 0
            dx = product.weights.product_back(joined) if ctx.needs_input_grad[0] else None
            da = product.ops.outer_product(dlow, x, 1.0)
            for _, scaling, outputs, ranks in product.updates:
                db = product.ops.outer_product(dy[:, outputs], low[:, ranks], scaling)
                grads += (da[ranks], db)
        own = []
        for layer, d in zip(product.frozen, dy.split(product.outputs, 1), strict=True):
            if storage_of(layer).requires_grad:
                dw = d.T @ x
                own.append(dw.T if is_transposed(layer) else dw)
            if layer.bias is not None and layer.bias.requires_grad:
                own.append(d.sum(0))
        return dx, None, *grads, *own


def _widened(dy: Tensor, columns: int) -> Tensor:
    """dy (T, O) as the first columns of a (T, `columns`) tensor: in place where its memory has these columns already.
    These must be nobody else's, as in what attention, gates and norms give back (`empty_with_stride`)."""
    numbers = dy.untyped_storage().nbytes() // dy.element_size()
    if dy.stride() == (columns, 1) and dy.storage_offset() == 0 and numbers >= len(dy) * columns:
        return dy.as_strided((len(dy), columns), (columns, 1))
    joined = dy.new_empty(len(dy), columns)
    joined[:, : dy.shape[1]] = dy
    return joined
