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
        self._copied: list[
            tuple[Any, int]
        ] = []  # the adapters' weights, and their versions, that Ŵ and s·B were made from
        self._scaled: list[Tensor] = []

    def __call__(self, x_TI: Tensor) -> Tensor:
        layers = [getattr(self._owner, name) for name in self._names]
        # After a pass in training the weights change, and fused optimisers do not count it as a new version.
        keep = not (torch.is_grad_enabled() or self._owner.training)
        if not all(_joinable(layer) for layer in layers):
            self._copied = []
            return torch.cat([layer(x_TI) for layer in layers], -1)
        frozen = [getattr(layer, "base", layer) for layer in layers]
        adapters: list[LowRank | None] = [layer if getattr(layer, "enabled", False) else None for layer in layers]
        store = self._prepared(frozen, adapters)
        scaled = self._adapted(store, adapters, keep) if store.shape[0] > sum(_outputs(frozen)) else []
        bias = self._bias(frozen)
        differentiable = torch.is_grad_enabled() and (
            x_TI.requires_grad
            or any(a is not None and a.lora_a.requires_grad for a in adapters)
            or any(p.requires_grad for layer in frozen for p in layer.parameters(recurse=False))
        )
        if not differentiable:
            return _forward(x_TI, store, bias, scaled, adapters, _outputs(frozen))[0]
        tensors = [p for a in adapters if a is not None for p in (a.lora_a, a.lora_b)]
        own = [p for layer in frozen for p in (layer.weight, layer.bias) if p is not None and p.requires_grad]
        y: Tensor = _Product.apply(x_TI, store, bias, scaled, adapters, frozen, *tensors, *own)  # type: ignore[no-untyped-call]
        return y

    def _prepared(self, frozen: list[Any], adapters: list[LowRank | None]) -> Tensor:
        """Ŵ, made anew where the layers' weights are no longer its rows or where there is no room for the adapters' A."""
        if len(frozen) == 1 and adapters[0] is None:
            return _rows(frozen[0])
        ranks = sum(a.lora_a.shape[0] for a in adapters if a is not None)
        outputs = sum(_outputs(frozen))
        weight = frozen[0].weight
        store = self._store
        if (
            store is None
            or store.shape[0] < outputs + ranks
            or store.dtype != weight.dtype
            or not self._holds(store, frozen)
        ):
            store = self._store = self._join(frozen, outputs + ranks)
        return store[: outputs + ranks]

    @torch.no_grad()
    def _adapted(self, store: Tensor, adapters: list[LowRank | None], keep: bool) -> list[Tensor]:
        """s·B (O, r) of each adapter in the dtype of the computation; and the adapters' A go into Ŵ, unless they are there."""
        here = [a for a in adapters if a is not None]
        now = [(p, p._version) for a in here for p in (a.lora_a, a.lora_b)]
        same = (
            keep
            and len(now) == len(self._copied)
            and all(a is b and v == w for (a, v), (b, w) in zip(now, self._copied, strict=True))
        )
        if not same:
            at = len(store) - sum(a.lora_a.shape[0] for a in here)
            for adapter in here:
                store[at : at + len(adapter.lora_a)].copy_(adapter.lora_a)
                at += len(adapter.lora_a)
            self._scaled = [(a.lora_b * a.scaling).to(store.dtype) for a in here]
            self._copied = now if keep else []
        return self._scaled

    def _holds(self, store: Tensor, frozen: list[Any]) -> bool:
        at = store.data_ptr()
        for layer in frozen:
            if layer.weight.data_ptr() != at:
                return False
            at += layer.weight.numel() * store.element_size()
        return True

    @torch.no_grad()
    def _join(self, frozen: list[Any], rows: int) -> Tensor:
        weights = [_rows(layer) for layer in frozen]
        store = weights[0].new_empty(rows, weights[0].shape[1])
        at = 0
        for layer, weight in zip(frozen, weights, strict=True):
            mine = store[at : at + len(weight)]
            mine.copy_(weight)
            layer.weight.data = mine.T if _transposed(layer) else mine
            at += len(weight)
        self._copied = []
        return store

    def _bias(self, frozen: list[Any]) -> Tensor | None:
        if all(layer.bias is None for layer in frozen):
            return None
        with torch.no_grad():
            parts = [
                layer.weight.new_zeros(n) if layer.bias is None else layer.bias
                for layer, n in zip(frozen, _outputs(frozen), strict=True)
            ]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

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


def _forward(
    x_TI: Tensor,
    store: Tensor,
    bias: Tensor | None,
    scaled: list[Tensor],
    adapters: list[LowRank | None],
    outputs: list[int],
) -> tuple[Tensor, Tensor | None]:
    """y (T, O), a view beside x Aᵀ (T, R)."""
    total = sum(outputs)
    if not scaled:
        return F.linear(x_TI, store, bias), None
    if bias is not None:
        bias = F.pad(bias, (0, store.shape[0] - total))
    joined = F.linear(x_TI, store, bias)
    y, low = joined[:, :total], joined[:, total:]
    at = rank_at = 0
    remaining = iter(scaled)
    for adapter, n in zip(adapters, outputs, strict=True):
        if adapter is not None:
            b = next(remaining)
            y[:, at : at + n].addmm_(low[:, rank_at : rank_at + b.shape[1]], b.T)
            rank_at += b.shape[1]
        at += n
    return y, low


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, store: Tensor, bias: Tensor | None, scaled: list[Tensor], adapters: list[LowRank | None],
        frozen: list[Any], *_: Tensor,
    ) -> Tensor:  # fmt: skip
        outputs = _outputs(frozen)
        y, low = _forward(x, store, bias, scaled, adapters, outputs)
        ctx.adapters, ctx.frozen, ctx.outputs = adapters, frozen, outputs
        ctx.save_for_backward(x, store, low, *scaled)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, store, low, *scaled = ctx.saved_tensors
        outputs, rows = sum(ctx.outputs), store.shape[0]
        dlow, grads = None, []
        if low is not None:
            whole = _with_room(dy, rows)
            dy, dlow = whole[:, :outputs], whole[:, outputs:]
            at = rank_at = 0
            remaining = iter(scaled)
            for adapter, n in zip(ctx.adapters, ctx.outputs, strict=True):
                if adapter is not None:
                    r = adapter.lora_b.shape[1]
                    mine, part = dy[:, at : at + n], slice(rank_at, rank_at + r)
                    dlow[:, part] = mine @ next(remaining)
                    grads.append((mine.T @ low[:, part]).float().mul_(adapter.scaling))
                    rank_at += r
                at += n
            da = (dlow.T @ x).float()
            dx = whole @ store if ctx.needs_input_grad[0] else None
            sizes = [a.lora_a.shape[0] for a in ctx.adapters if a is not None]
            grads = [g for pair in zip(da.split(sizes), grads, strict=True) for g in pair]
        else:
            dx = dy @ store if ctx.needs_input_grad[0] else None
        own = []
        for layer, d in zip(ctx.frozen, dy.split(ctx.outputs, 1), strict=True):
            if layer.weight.requires_grad:
                dw = d.T @ x
                own.append(dw.T if _transposed(layer) else dw)
            if layer.bias is not None and layer.bias.requires_grad:
                own.append(d.sum(0))
        return dx, None, None, None, None, None, *grads, *own


def _with_room(dy: Tensor, columns: int) -> Tensor:
    """dy (T, O) as the first columns of a (T, `columns`) tensor: in place where its rows have the room beside them."""
    room = dy.untyped_storage().nbytes() // dy.element_size()
    if dy.stride() == (columns, 1) and dy.storage_offset() == 0 and room >= len(dy) * columns:
        return dy.as_strided((len(dy), columns), (columns, 1))
    whole = dy.new_empty(len(dy), columns)
    whole[:, : dy.shape[1]] = dy
    return whole
