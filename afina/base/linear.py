"""One matrix product for linear layers that read the same input, their low-rank updates included.

T tokens, I inputs, O outputs (of all parts together), R ranks (of all parts together).

With Ŵ = [W; A], the frozen weights and below them the adapters' A, one product gives ŷ = x Ŵᵀ = [y₀ | x Aᵀ], to which the
small s·(x Aᵀ)Bᵀ are added part by part. Backward, with dlow = s·dy B, one product gives dx = [dy | dlow] Ŵ as well; then
dA = dlowᵀ x and dB = s·dyᵀ (x Aᵀ). The frozen weights live in Ŵ alone: the layers' own `weight` are views of its rows.
"""

import copy
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LowRank(Protocol):
    """What a layer that adapts another (`lora.LoraLinear`) shows of itself, so that its products can be joined with others."""

    base: Any
    lora_a: nn.Parameter
    lora_b: nn.Parameter
    scaling: float
    enabled: bool
    dropout: nn.Dropout


class Conv1D(nn.Module):
    """A linear layer whose weight is (inputs, outputs), as GPT-2 stores it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.T, self.bias)


class Joined:
    """The layers `names` of `owner`, applied to one input: (T, I) → (T, O), the outputs side by side.

    The layers may be plain, or adapted by a `LowRank` layer at any time; anything else in their place is called as it is.
    """

    def __init__(self, owner: nn.Module, *names: str) -> None:
        self._owner, self._names = owner, names
        self._store: Tensor | None = None
        self._ready: _Ready | None = None

    def __call__(self, x_TI: Tensor) -> Tensor:
        # After a pass in training the weights change, and fused optimisers do not count it as a new version.
        keep = not (torch.is_grad_enabled() or self._owner.training)
        ready = self._ready if keep else None
        layers = self._owner._modules
        if ready is None or not ready.holds(tuple(layers[name] for name in self._names)):
            made = self._prepare([layers[name] for name in self._names])
            if made is None:
                self._ready = None
                return torch.cat([getattr(self._owner, name)(x_TI) for name in self._names], -1)
            ready = made
            self._ready = made if keep else None
        if not torch.is_grad_enabled() or not (x_TI.requires_grad or ready.trained()):
            return ready.product(x_TI)[0]
        y: Tensor = _Product.apply(x_TI, ready, *ready.parameters())  # type: ignore[no-untyped-call]
        return y

    @torch.no_grad()
    def _prepare(self, layers: list[Any]) -> "_Ready | None":
        """What the product needs, from the layers as they are now; None where they cannot be joined."""
        if not all(_joinable(layer) for layer in layers):
            return None
        frozen = [getattr(layer, "base", layer) for layer in layers]
        adapters: list[LowRank | None] = [layer if getattr(layer, "enabled", False) else None for layer in layers]
        here = [a for a in adapters if a is not None]
        store = self._joined(frozen, sum(a.lora_a.shape[0] for a in here))
        if here:
            at = sum(_outputs(frozen))
            for adapter in here:
                store[at : at + len(adapter.lora_a)].copy_(adapter.lora_a)
                at += len(adapter.lora_a)
        scaled = [(a.lora_b * a.scaling).to(store.dtype) for a in here]
        return _Ready(tuple(layers), frozen, adapters, store, scaled, self._bias(frozen, len(store)))

    def _joined(self, frozen: list[Any], ranks: int) -> Tensor:
        """Ŵ, made anew where the layers' weights are no longer its rows or where there is no room for the adapters' A."""
        if len(frozen) == 1 and not ranks:
            return _rows(frozen[0])
        rows = sum(_outputs(frozen)) + ranks
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
        weights = [_rows(layer) for layer in frozen]
        store = weights[0].new_empty(rows, weights[0].shape[1])
        at = 0
        for layer, weight in zip(frozen, weights, strict=True):
            mine = store[at : at + len(weight)]
            mine.copy_(weight)
            layer.weight.data = mine.T if _transposed(layer) else mine
            at += len(weight)
        return store

    def _bias(self, frozen: list[Any], rows: int) -> Tensor | None:
        """The layers' biases, and zeros for the adapters' A."""
        if all(layer.bias is None for layer in frozen):
            return None
        bias: Tensor = frozen[0].weight.new_zeros(rows)
        at = 0
        for layer, n in zip(frozen, _outputs(frozen), strict=True):
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
    if frozen is layer or not layer.enabled:
        return True
    return hasattr(layer, "lora_a") and not (layer.training and layer.dropout.p > 0)


def _transposed(layer: Any) -> bool:
    return isinstance(layer, Conv1D)


def _rows(layer: Any) -> Tensor:
    weight: Tensor = layer.weight
    return weight.T if _transposed(layer) else weight


def _outputs(frozen: list[Any]) -> list[int]:
    return [_rows(layer).shape[0] for layer in frozen]


class _Ready:
    """A joined product in the state that its layers had when it was made: Ŵ, s·B of each adapter, the bias."""

    def __init__(
        self, layers: tuple[Any, ...], frozen: list[Any], adapters: list[LowRank | None], store: Tensor,
        scaled: list[Tensor], bias: Tensor | None,
    ) -> None:  # fmt: skip
        self.layers, self.frozen, self.adapters = layers, frozen, adapters
        self.store, self.scaled, self.bias = store, scaled, bias
        self.outputs = _outputs(frozen)
        self.total = sum(self.outputs)
        self._state = self._look()

    def _look(self) -> list[Any]:
        state: list[Any] = [layer.weight.data_ptr() for layer in self.frozen]
        for layer in self.layers:
            enabled = getattr(layer, "enabled", None)
            if enabled is not None:
                state += (enabled, layer.lora_a._version, layer.lora_b._version, layer.lora_a.data_ptr())
        return state

    def holds(self, layers: tuple[Any, ...]) -> bool:
        """Whether these are the layers, with weights that have not changed."""
        return all(a is b for a, b in zip(layers, self.layers, strict=True)) and self._look() == self._state

    def parameters(self) -> list[Tensor]:
        """What may get a gradient, in the order in which `_Product` returns them."""
        tensors = [p for a in self.adapters if a is not None for p in (a.lora_a, a.lora_b)]
        return tensors + [p for f in self.frozen for p in (f.weight, f.bias) if p is not None and p.requires_grad]

    def trained(self) -> bool:
        return any(parameter.requires_grad for parameter in self.parameters())

    def product(self, x_TI: Tensor) -> tuple[Tensor, Tensor | None]:
        """y (T, O), and x Aᵀ (T, R), beside which it lies in memory."""
        joined = F.linear(x_TI, self.store, self.bias)
        if not self.scaled:
            return joined, None
        y, low = joined[:, : self.total], joined[:, self.total :]
        at = rank_at = 0
        remaining = iter(self.scaled)
        for adapter, n in zip(self.adapters, self.outputs, strict=True):
            if adapter is not None:
                b = next(remaining)
                y[:, at : at + n].addmm_(low[:, rank_at : rank_at + b.shape[1]], b.T)
                rank_at += b.shape[1]
            at += n
        return y, low


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ready: _Ready, *_: Tensor) -> Tensor:
        y, low = ready.product(x)
        ctx.ready = ready
        ctx.save_for_backward(x, ready.store, low, *ready.scaled)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, store, low, *scaled = ctx.saved_tensors
        ready: _Ready = ctx.ready
        outputs, rows = ready.total, len(store)
        dlow, grads = None, []
        if low is not None:
            whole = _with_room(dy, rows)
            dy, dlow = whole[:, :outputs], whole[:, outputs:]
            at = rank_at = 0
            remaining = iter(scaled)
            for adapter, n in zip(ready.adapters, ready.outputs, strict=True):
                if adapter is not None:
                    r = adapter.lora_b.shape[1]
                    mine, part = dy[:, at : at + n], slice(rank_at, rank_at + r)
                    dlow[:, part] = mine @ next(remaining)
                    grads.append((mine.T @ low[:, part]).float().mul_(adapter.scaling))
                    rank_at += r
                at += n
            da = (dlow.T @ x).float()
            dx = whole @ store if ctx.needs_input_grad[0] else None
            sizes = [a.lora_a.shape[0] for a in ready.adapters if a is not None]
            grads = [g for pair in zip(da.split(sizes), grads, strict=True) for g in pair]
        else:
            dx = dy @ store if ctx.needs_input_grad[0] else None
        own = []
        for layer, d in zip(ready.frozen, dy.split(ready.outputs, 1), strict=True):
            if layer.weight.requires_grad:
                dw = d.T @ x
                own.append(dw.T if _transposed(layer) else dw)
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
