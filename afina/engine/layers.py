"""The decoder's own layers: norms, token embeddings, GPT-2's linear layer. T tokens, C channels, V tokens of the
vocabulary."""

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afina.core.errors import BaseModelError
from afina.engine.blocks import Blocks
from afina.engine.ops.by_torch import Ops


class RmsNorm(nn.Module):
    """Root mean square norm; `offset` is added to the stored weight."""

    def __init__(self, width: int, eps: float, offset: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps, self.offset = eps, offset

    def scale(self) -> Tensor:
        """What the normed values are multiplied by, in fp32."""
        weight = self.weight.float()
        return weight + self.offset if self.offset else weight


def add_norm(norm: Any, x_TC: Tensor, added_TC: Tensor | None, ops: Ops) -> tuple[Tensor, Tensor]:
    """(h, norm(h)) with h = x + added; without a norm (h, h)."""
    if isinstance(norm, RmsNorm):
        if added_TC is None:
            return x_TC, ops.rms_norm(x_TC, norm.scale(), norm.eps)
        return ops.add_rms_norm(x_TC, added_TC, norm.scale(), norm.eps)
    h_TC = x_TC if added_TC is None else x_TC + added_TC
    return h_TC, h_TC if norm is None else norm(h_TC)


@cache
def _rounded(number: float, dtype: torch.dtype) -> float:
    """As a tensor of this dtype would hold it."""
    return torch.tensor(number, dtype=dtype).item()


def expect_known(ids: Iterable[int], embeddings: int) -> None:
    """Raises `BaseModelError` for an id that has no embedding: after one, a card would take no more work."""
    if (most := max(ids, default=0)) >= embeddings:
        raise BaseModelError(
            f"the text holds token {most}; the base has embeddings of {embeddings}",
            "its tokenizer and its weights do not belong together: leave such tokens out, or choose another base",
        )


class Embedding(nn.Embedding):
    """Token embeddings (V, C), times `embed_scale` where the model has one."""

    def __init__(self, vocabulary: int, width: int, scale: float | None) -> None:
        super().__init__(vocabulary, width, _weight=torch.empty(vocabulary, width))
        self.embed_scale = 1.0 if scale is None else scale

    def forward(self, ids: Tensor) -> Tensor:
        """(…, C) of ids (…). Raises `BaseModelError` for an id that has no embedding."""
        try:
            x = self._rows(ids)
        except IndexError:
            expect_known(ids.flatten().tolist(), self.num_embeddings)
            raise
        return x if self.embed_scale == 1.0 else x * _rounded(self.embed_scale, x.dtype)

    def _rows(self, ids: Tensor) -> Tensor:
        return super().forward(ids)


class BlockEmbedding(Embedding):
    """Token embeddings kept in blocks; only the rows looked up are dequantised."""

    def __init__(self, blocks: Blocks, scale: float) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = blocks.rows, blocks.columns
        self.blocks, self.embed_scale = blocks, scale

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.blocks.dequantised()

    def _rows(self, ids: Tensor) -> Tensor:
        return self.blocks.take(ids.flatten()).dequantised().view(*ids.shape, -1)

    def dequantised(self) -> Embedding:
        """The layer with an ordinary weight."""
        with torch.device("meta"):
            plain = Embedding(self.num_embeddings, self.embedding_dim, self.embed_scale)
        plain.weight = nn.Parameter(self.weight, requires_grad=False)
        return plain


class Conv1D(nn.Module):
    """A linear layer whose weight is (inputs, outputs), as GPT-2 stores it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.nf = outputs
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.T, self.bias)
