"""Frozen matrices quantised in blocks, and the layers that compute with them.

R rows of K numbers each, in `row_bytes` bytes; T tokens. A matrix is dequantised just before a product needs it, into
one scratch that all layers share, so that a model takes little more memory than its blocks. Formats are those of GGUF
files, and NF4.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afina.core.errors import BaseModelError
from afina.core.layers import is_conv1d, replace
from afina.engine import formats
from afina.engine.ops.by_torch import Ops
from afina.engine.ops.choice import loaded
from afina.engine.ops.unpack import GGML_FORMATS as GGML_FORMATS
from afina.engine.ops.unpack import NF4, Q8_0, nf4_levels_on, row_bytes
from afina.engine.ops.unpack import NF4_BLOCK as NF4_BLOCK

TILE = 1 << 22  # numbers of a large matrix that are dequantised at one time


class Blocks(nn.Module):
    """A frozen, quantised matrix (rows, columns); `data` (rows, row_bytes) holds its blocks, `dtype` is that of its
    dequantised numbers. Raises `ValueError` where so many bytes a row are not so many columns."""

    data: Tensor

    def __init__(self, data: Tensor, kind: int, columns: int, dtype: torch.dtype) -> None:
        super().__init__()
        if data.dtype != torch.uint8 or data.dim() != 2 or data.shape[1] != row_bytes(kind, columns):
            raise ValueError(f"a row of {columns} numbers in format {kind} is not {tuple(data.shape)[1:]} bytes")
        self.kind, self.columns, self.dtype = kind, columns, dtype
        self.register_buffer("data", data, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """`.to(…)` and its like: the bytes may move, and the numbers will be dequantised to the new dtype."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return self

    @property
    def rows(self) -> int:
        return self.data.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.columns

    def numel(self) -> int:
        return self.rows * self.columns

    def take(self, rows: Tensor | slice) -> "Blocks":
        """The matrix of these rows."""
        return Blocks(self.data[rows], self.kind, self.columns, self.dtype)

    @torch.no_grad()
    def dequantise_into(self, out_RK: Tensor, ops: Ops | None = None) -> None:
        """Writes the dequantised matrix into `out_RK`, whose rows may be strided."""
        (ops or loaded(out_RK)).unpack(self.data.contiguous(), self.kind, out_RK)

    def dequantised(self, dtype: torch.dtype | None = None) -> Tensor:
        """The matrix at full precision, (rows, columns), in its own memory."""
        out = torch.empty(self.rows, self.columns, dtype=dtype or self.dtype, device=self.data.device)
        self.dequantise_into(out)
        return out

    def product(self, x_TK: Tensor) -> Tensor:
        """x Wᵀ, (T, R)."""
        if self.numel() <= TILE:
            with self._in_scratch() as weight_RK:
                return F.linear(x_TK, weight_RK)
        y = x_TK.new_empty(len(x_TK), self.rows)
        for rows, tile in self.tiles():
            with tile._in_scratch() as weight_RK:
                y[:, rows] = F.linear(x_TK, weight_RK)
        return y

    def product_back(self, dy_TR: Tensor) -> Tensor:
        """dy W, (T, K)."""
        if self.numel() <= TILE:
            with self._in_scratch() as weight_RK:
                return dy_TR @ weight_RK
        dx = torch.zeros(len(dy_TR), self.columns, device=dy_TR.device)
        for rows, tile in self.tiles():
            with tile._in_scratch() as weight_RK:
                dx += dy_TR[:, rows] @ weight_RK
        return dx.to(dy_TR.dtype)

    def tiles(self) -> "list[tuple[slice, Blocks]]":
        """The matrix in slices of rows of at most TILE numbers each."""
        rows = max(1, TILE // self.columns)
        return [(slice(at, at + rows), self.take(slice(at, at + rows))) for at in range(0, self.rows, rows)]

    @contextmanager
    def _in_scratch(self) -> Iterator[Tensor]:
        """The dequantised matrix, in the shared scratch."""
        with scratch(self.rows, self.columns, self) as out_RK:
            self.dequantise_into(out_RK)
            yield out_RK


# ------------------------------------------------------------------------------------------------ quantisation


def quantise(weight_RK: Tensor, kind: str, dtype: torch.dtype) -> Blocks | None:
    """The matrix quantised to `kind` nf4 or int8 (Q8_0's blocks of 32); None where its rows do not fill whole
    blocks."""
    columns = weight_RK.shape[1]
    if columns % (NF4_BLOCK if kind == "nf4" else 32):
        return None
    if kind == "nf4":
        return Blocks(_nf4(weight_RK.float().contiguous()), NF4, columns, dtype)
    return Blocks(formats.q8_0_of(weight_RK.detach().float()), Q8_0, columns, dtype)


def _nf4(weight_RK: Tensor) -> Tensor:
    """Rows of NF4. Scales, the largest magnitude of each block of 64, are quantised too: to a byte, between a row's
    smallest and largest scale."""
    blocks = weight_RK.unflatten(1, (-1, NF4_BLOCK))
    scales = blocks.abs().amax(2)
    least = scales.amin(1, keepdim=True)
    step = (scales.amax(1, keepdim=True) - least) / 255
    codes = ((scales - least) / step.clamp(min=1e-30)).round()
    scales = (least + step * codes)[..., None]
    levels = nf4_levels_on(weight_RK.device)
    middles = (levels[1:] + levels[:-1]) / 2
    q = torch.bucketize(blocks / scales.clamp(min=1e-30), middles, out_int32=True).to(torch.uint8)
    q = q[..., : NF4_BLOCK // 2] | q[..., NF4_BLOCK // 2 :] << 4
    head = torch.cat([least, step], 1).view(torch.uint8)
    return torch.cat([head, codes.to(torch.uint8), q.flatten(1)], 1)


# ------------------------------------------------------------------------------------------------ layers

_of_thread = threading.local()  # the processor's scratches: a recorded step (tape.py) has the address of its own
_of_cards: dict[str, Tensor] = {}  # one for all threads: there autograd does the backward pass in another than ours
_turn = threading.Lock()


@contextmanager
def scratch(rows: int, columns: int, like: Blocks) -> Iterator[Tensor]:
    """Memory (rows, columns) that all layers share. After the block another product may overwrite it: a card does in
    turn what it is asked for."""
    device = like.data.device
    key = f"{like.dtype} {device}"
    on_host = device.type == "cpu"
    scratches: dict[str, Tensor] = _of_thread.__dict__ if on_host else _of_cards
    with nullcontext() if on_host else _turn:
        if key not in scratches or scratches[key].numel() < rows * columns:
            scratches.pop(key, None)
            with torch.inference_mode(False):  # training may use it later
                scratches[key] = torch.empty(rows * columns, dtype=like.dtype, device=device)
        yield scratches[key][: rows * columns].view(rows, columns)


Quantiser = Callable[[str, Tensor], Tensor | Blocks]  # what a weight, by its name, becomes as it is read


class BlockLinear(nn.Linear):
    """A frozen linear layer over blocks. Its `weight` is dequantised whenever it is read, and cannot be trained."""

    def __init__(self, blocks: Blocks, bias: Tensor | None = None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = blocks.rows, blocks.columns
        self.blocks = blocks
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.blocks.dequantised()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Product.apply(x, self.blocks)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias

    def dequantised(self) -> nn.Linear:
        """The layer with an ordinary weight."""
        with torch.device("meta"):
            plain = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        plain.weight = nn.Parameter(self.weight, requires_grad=False)
        if self.bias is not None:
            plain.bias = self.bias
        return plain


class _Product(torch.autograd.Function):
    """y = x Wᵀ and dx = dy W, tile by tile; sums over tiles in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Blocks) -> Tensor:
        ctx.blocks = blocks
        return blocks.product(x.flatten(0, -2)).view(*x.shape[:-1], blocks.rows)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        dx = ctx.blocks.product_back(dy.flatten(0, -2))
        return dx.view(*dy.shape[:-1], ctx.blocks.columns), None


def weight_bytes(module: nn.Module) -> int:
    """Bytes that the frozen weights of `module` take: tensors, blocks, and the scratch that blocks are dequantised
    into."""
    frozen = [p for p in module.parameters() if not p.requires_grad]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in [*frozen, *module.buffers()]}
    scratches: list[Tensor] = [*_of_thread.__dict__.values(), *_of_cards.values()]
    return sum(storages.values()) + sum(each.untyped_storage().nbytes() for each in scratches)


def parameter_count(module: nn.Module) -> int:
    """Parameters of a model, those in blocks included."""
    blocks = sum(each.numel() for each in module.modules() if isinstance(each, Blocks))
    return blocks + sum(int(p.numel()) for p in module.parameters())


def linear_layers(model: nn.Module, leave: Sequence[str] = ()) -> dict[str, Any]:
    """By their paths, the layers that may be quantised: all linear ones but the output head and those in `leave`."""
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if getter else None
    return {
        path: layer
        for path, layer in model.named_modules()
        if (type(layer) in (nn.Linear, BlockLinear) or is_conv1d(layer))
        and layer is not head
        and not any(path == each or path.startswith(f"{each}.") for each in leave)
    }


def full_precision(name: str, weight: Tensor) -> Tensor | Blocks:
    """The `Quantiser` that quantises nothing."""
    return weight


def quantiser_for(model: nn.Module, kind: str | None, dtype: torch.dtype) -> Quantiser:
    """Quantises the weights of the model's linear layers to nf4 or int8 one by one, as they are read: never are all of
    them in memory at full precision."""
    if kind not in ("nf4", "int8"):
        return full_precision
    layers = {f"{path}.weight": layer for path, layer in linear_layers(model).items()}

    def quantised(name: str, weight: Tensor) -> Tensor | Blocks:
        return (_in_blocks(layers[name], weight, kind, dtype) if name in layers else None) or weight

    return quantised


def _in_blocks(layer: nn.Module, weight: Tensor, kind: str, dtype: torch.dtype) -> Blocks | None:
    return quantise(weight.T if is_conv1d(layer) else weight, kind, dtype)


@torch.no_grad()
def quantise_linears(model: nn.Module, kind: str, dtype: torch.dtype, leave: Sequence[str] = ()) -> list[str]:
    """Quantises, in place, the linear layers of a model that are not quantised yet; returns the paths of those that
    stay as they are because their rows do not fill whole blocks. Raises `BaseModelError` where no layer can be
    quantised."""
    layers, left = linear_layers(model, leave), []
    for path, layer in layers.items():
        if isinstance(layer, BlockLinear):
            continue
        blocks = _in_blocks(layer, layer.weight, kind, dtype)
        if blocks is None:
            left.append(path)
        else:
            replace(model, path, BlockLinear(blocks, layer.bias))
    if len(left) == len(layers):
        raise BaseModelError(
            f"--quantize {kind}: no linear layer has rows of whole blocks", "leave --quantize out for this base"
        )
    return left
