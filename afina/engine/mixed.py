"""Rows of several adapters and of the bare base in one pass: y = x Wᵀ is computed for all rows at one time, and to the
rows that have an adapter its s·B(A x) is added.

T tokens, I inputs, O outputs of a layer, r its rank, R ranks of layers that read the same input together.

Example: of four tokens the first and the last have an adapter with A (8, 48) and B (64, 8) for q, the first of the
joined layers q, k, v. Then y (4, 64 + 32 + 32) = x Ŵᵀ, and `RowUpdates.add` adds (x[[0, 3]] Aᵀ)(s·B)ᵀ to the columns 0
to 64 of its rows 0 and 3. Whatever the number of adapters, that is one call of a kernel for each joined product.
"""

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from afina.core.device import sent
from afina.core.errors import AdapterError, counted, enumerated
from afina.core.updates import Factors
from afina.engine import kernels
from afina.engine.kernels import Kernels, MixedProduct, MixedSlice

TILE = 16  # columns of a matrix that lie together for the kernel


class Place(NamedTuple):
    """Where a linear layer stands: the number of its joined product, its columns there, and how many inputs it has."""

    product: int
    begin: int
    end: int
    inputs: int


class _Slice(NamedTuple):
    """Of a layer: its columns of y, where its ranks begin in A, and s·B (O, r)."""

    begin: int
    end: int
    low: int
    b_OR: Tensor


class _Update(NamedTuple):
    """What an adapter has for one joined product: A (R, I) of its layers, and their slices."""

    a_RI: Tensor
    slices: list[_Slice]


class PackedUpdates:
    """An adapter's factors, ready for the products of one decoder: in its dtype, s in B, joined as its layers are.

    Raises `AdapterError` with every name that is none of `places`, and every shape that does not fit.
    """

    def __init__(
        self, factors: Mapping[str, Factors], places: Mapping[str, Place], dtype: torch.dtype, device: torch.device,
        fused: Kernels | None,
    ) -> None:  # fmt: skip
        _check(factors, places)
        self.dtype, self.device, self.fused = dtype, device, fused
        self._tensors: list[Tensor] = []
        count = max(place.product for place in places.values()) + 1
        self._table = (MixedProduct * count)()
        self._slices: list[Any] = []
        self._updates: dict[int, _Update] = {}
        for product, update in self._joined(factors, places):
            if fused is None:
                self._updates[product] = update
                self._tensors += [update.a_RI, *(part.b_OR for part in update.slices)]
            else:
                self._table[product] = self._tiled(update)
        self.bytes = sum(tensor.nbytes for tensor in self._tensors)

    @property
    def address(self) -> int:
        """By which a row names it."""
        return ctypes.addressof(self._table)

    def __deepcopy__(self, memo: dict[int, Any]) -> "PackedUpdates":
        return self

    def suits(self, dtype: torch.dtype, device: torch.device, fused: Kernels | None) -> bool:
        return self.dtype == dtype and self.device == device and self.fused is fused

    def _joined(self, factors: Mapping[str, Factors], places: Mapping[str, Place]) -> Iterator[tuple[int, _Update]]:
        by_product: dict[int, list[tuple[Place, Factors]]] = {}
        for path, each in factors.items():
            if len(each.a_RI):
                by_product.setdefault(places[path].product, []).append((places[path], each))
        for product, found in by_product.items():
            found.sort(key=lambda item: item[0].begin)
            ranks = [len(each.a_RI) + len(each.a_RI) % 2 for _, each in found]  # even: the kernel may multiply pairs
            a_RI = torch.zeros(sum(ranks), found[0][0].inputs, dtype=self.dtype, device=self.device)
            slices, low = [], 0
            for (place, (own_RI, b_OR, scaling)), rank in zip(found, ranks, strict=True):
                a_RI[low : low + len(own_RI)] = own_RI
                scaled_OR = (b_OR.detach().float() * scaling).to(self.device, self.dtype)
                slices.append(_Slice(place.begin, place.end, low, F.pad(scaled_OR, (0, rank - len(own_RI)))))
                low += rank
            yield product, _Update(a_RI, slices)

    def _tiled(self, update: _Update) -> MixedProduct:
        """What the kernel reads, kept here."""
        slices = (MixedSlice * len(update.slices))()
        for i, part in enumerate(update.slices):
            b = self._tiles(part.b_OR)
            slices[i] = MixedSlice(part.begin, part.end, part.low, part.b_OR.shape[1], b.data_ptr())
        a = self._tiles(update.a_RI)
        self._slices.append(slices)
        ranks = -(-len(update.a_RI) // TILE) * TILE
        return MixedProduct(ranks, a.data_ptr(), len(slices), ctypes.addressof(slices))

    def _tiles(self, rows_NK: Tensor) -> Tensor:
        """The columns of the transpose in tiles, (N / TILE, K, TILE), filled up with zeros; where the kernel multiplies
        pairs (N / TILE, K / 2, TILE, 2)."""
        assert self.fused is not None
        pairs = 2 if self.fused.multiplies_pairs and self.dtype == torch.bfloat16 else 1
        rows_NK = F.pad(rows_NK, (0, -rows_NK.shape[1] % pairs, 0, -len(rows_NK) % TILE))
        tiles = rows_NK.view(len(rows_NK) // TILE, TILE, -1, pairs).transpose(1, 2).contiguous()
        self._tensors.append(tiles)
        return tiles

    def add(self, product: int, rows: Tensor, x_TI: Tensor, y_TO: Tensor) -> None:
        """y[rows] += s·B(A x[rows]) in torch, for each layer of the joined product."""
        update = self._updates.get(product)
        if update is None:
            return
        low = x_TI[rows] @ update.a_RI.T
        for part in update.slices:
            own = low[:, part.low : part.low + part.b_OR.shape[1]] @ part.b_OR.T
            y_TO[rows, part.begin : part.end] += own


def _check(factors: Mapping[str, Factors], places: Mapping[str, Place]) -> None:
    absent = sorted(path for path in factors if path not in places)
    problems = []
    if absent:
        problems.append(
            f"{counted(len(absent), 'layer is', 'layers are')} not among the model's linear layers: "
            f"{enumerated(absent, len(absent))}"
        )
    for path in sorted(factors.keys() & places.keys()):
        place, (a_RI, b_OR, _) = places[path], factors[path]
        fits = a_RI.dim() == b_OR.dim() == 2 and len(a_RI) == b_OR.shape[1]
        if not fits or (b_OR.shape[0], a_RI.shape[1]) != (place.end - place.begin, place.inputs):
            problems.append(
                f"{path}: A is {tuple(a_RI.shape)} and B {tuple(b_OR.shape)}, expected (rank, {place.inputs}) and "
                f"({place.end - place.begin}, rank)"
            )
    if problems:
        raise AdapterError(problems, "serve the adapter on the base that it was made for")


class RowUpdates:
    """What each token of a pass has: the packed updates of an adapter, or None. Whoever makes it holds these as long as
    it is used: only their addresses stand here, so that a recorded step (tape.py) does not keep an adapter."""

    def __init__(self, addresses_T: Tensor, packed: Mapping[int, PackedUpdates], dtype: torch.dtype) -> None:
        self.addresses_T, self._dtype = addresses_T, dtype
        self._packed = packed  # by address, where torch computes
        self._rows: dict[tuple[int, torch.device], Tensor] = {}  # of an adapter on a device, for all layers

    @staticmethod
    def of(segments: Sequence[PackedUpdates | None], lengths_S: Tensor) -> "RowUpdates | None":
        """Of segments of so many tokens; None where none has any."""
        present = [each for each in segments if each is not None]
        if not present:
            return None
        addresses_S = torch.tensor([0 if each is None else each.address for each in segments])
        by_torch = {each.address: each for each in present if each.fused is None}
        return RowUpdates(addresses_S.repeat_interleave(lengths_S), by_torch, present[0].dtype)

    def at(self, at_N: Tensor) -> "RowUpdates":
        """Of these tokens."""
        return RowUpdates(self.addresses_T[at_N.to(self.addresses_T.device)], self._packed, self._dtype)

    def add(self, product: int, x_TI: Tensor, y_TO: Tensor, fused: Kernels | None) -> None:
        """y[t] += s·B(A x[t]) for each token that has an adapter, in place."""
        assert (fused is None) == bool(self._packed), "packed for the other way to compute"
        if fused is None:
            for address, packed in self._packed.items():
                packed.add(product, self._rows_on(x_TI.device, address), x_TI, y_TO)
            return
        count = len(self.addresses_T)
        kernels.expect(torch.int64, (self.addresses_T, (count,)))
        kernels.expect(self._dtype, (x_TI, (count, x_TI.shape[1])), (y_TO, (count, y_TO.shape[1])))
        fused.call(
            "mixed_add", x_TI, x_TI.stride(0), y_TO, y_TO.stride(0), self.addresses_T, product, *x_TI.shape,
            torch.get_num_threads(),
        )  # fmt: skip

    def _rows_on(self, device: torch.device, address: int) -> Tensor:
        if (address, device) not in self._rows:
            rows = (self.addresses_T == address).nonzero().squeeze(1)
            self._rows[address, device] = sent(rows, device)
        return self._rows[address, device]
