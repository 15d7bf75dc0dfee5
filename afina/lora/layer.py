"""The LoRA layers: they wrap a frozen layer and never change it.

    y = W x + s · B (A x),   s = alpha / rank   (Hu et al. 2021, https://arxiv.org/abs/2106.09685, equation 3)

A is (rank, in), B is (out, rank). A starts random and B at zero (for embeddings the other way round), so the adapted model
starts as the base. Both are kept in fp32 and used in the dtype of their input.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afina.core.layers import is_conv1d


class Size(NamedTuple):
    """What a configuration says of one layer."""

    rank: int
    scaling: float
    dropout: float


class Wrapper(nn.Module):
    """A module of an adapter in the place of one of the model's, its `base`; `enabled` off makes it be its base."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base
        self.enabled = True

    @property
    def weight(self) -> nn.Parameter:
        """The base's weight, for code that looks at it."""
        return self.base.weight  # type: ignore[no-any-return]


class LoraLayer(Wrapper):
    """What all adapted layers share.

    `additive`: the output is base(x) + scaling · B(A x) and no more, so that others may join the products.
    """

    additive = True

    def __init__(self, base: Any, size: Size) -> None:
        super().__init__(base)
        self.rank, self.scaling = size.rank, size.scaling
        self.dropout = nn.Dropout(size.dropout)

    def tensors(self) -> dict[str, Tensor]:
        """What is saved of the layer, by the end of PEFT's name for it."""
        raise NotImplementedError

    def merged_weight(self) -> Tensor:
        """The weight, in fp32 and the base's shape, with which the base layer alone would do what this layer does."""
        raise NotImplementedError

    def merged(self) -> dict[str, Tensor]:
        """The base's tensors that change when the update is folded in, by their names."""
        return {"weight": self.merged_weight()}


class LoraLinear(LoraLayer):
    """LoRA around `nn.Linear`, or around transformers' `Conv1D`, whose weight is (in, out). x is (…, in), y (…, out)."""

    def __init__(self, base: Any, size: Size, generator: torch.Generator) -> None:
        super().__init__(base, size)
        self.transposed = is_conv1d(base)
        self.frozen_ranks = 0
        outputs, inputs = self.frozen_weight().shape
        device = base.weight.device
        start = torch.empty(size.rank, inputs)
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        self.lora_a = nn.Parameter(start.to(device))
        self.lora_b = nn.Parameter(torch.zeros(outputs, size.rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y + self.update(x) if self.enabled else y

    def update(self, x: Tensor) -> Tensor:
        """s · B (A x)."""
        low = F.linear(self.dropout(x), self.lora_a.to(x.dtype))
        return F.linear(low * self.scaling, self.lora_b.to(x.dtype))

    def frozen_weight(self) -> Tensor:
        """W, (out, in)."""
        weight: Tensor = self.base.weight.detach()
        return weight.T if self.transposed else weight

    @torch.no_grad()
    def start(self, a: Tensor, b: Tensor, from_base: bool = False) -> None:
        """Lets the factors begin with `a` (rank, in) and `b` (out, rank).

        `from_base`: the update begins with nothing all the same. What it begins with, s·B₀A₀, is taken away in the product
        by as many frozen ranks again, s·[B, −B₀][A; A₀], rather than from the base, which others share.
        """
        rank = len(a)
        if from_base:
            a, b = torch.cat([a, a]), torch.cat([b, -b], 1)
        self.rank, self.frozen_ranks = len(a), rank if from_base else 0
        self.lora_a = nn.Parameter(a.to(self.lora_a).contiguous())
        self.lora_b = nn.Parameter(b.to(self.lora_b).contiguous())
        if from_base:
            self.lora_a.register_hook(lambda grad: torch.cat([grad[:rank], torch.zeros_like(grad[rank:])]))
            self.lora_b.register_hook(lambda grad: torch.cat([grad[:, :rank], torch.zeros_like(grad[:, rank:])], 1))

    def tensors(self) -> dict[str, Tensor]:
        return {"lora_A.weight": self.lora_a, "lora_B.weight": self.lora_b}

    @torch.no_grad()
    def delta(self) -> Tensor:
        """s·BA, (out, in), in fp32."""
        return self.scaling * (self.lora_b @ self.lora_a)

    def merged_weight(self) -> Tensor:
        merged = self.frozen_weight().float() + self.delta()
        return merged.T if self.transposed else merged


class LoraEmbedding(LoraLayer):
    """LoRA around `nn.Embedding`: A is (rank, words), B is (width, rank). ids are (…), y is (…, width)."""

    def __init__(self, base: Any, size: Size, generator: torch.Generator) -> None:
        super().__init__(base, size)
        words, width = base.weight.shape
        device = base.weight.device
        self.lora_a = nn.Parameter(torch.zeros(size.rank, words, device=device))
        self.lora_b = nn.Parameter(torch.randn(width, size.rank, generator=generator).to(device))

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.base(ids)
        if not self.enabled:
            return y
        low = F.embedding(ids, self.lora_a.T.to(y.dtype))
        scale = self.scaling * getattr(self.base, "embed_scale", 1.0)  # some models scale their embeddings
        return y + F.linear(self.dropout(low), self.lora_b.to(y.dtype)) * scale

    def tensors(self) -> dict[str, Tensor]:
        return {"lora_embedding_A": self.lora_a, "lora_embedding_B": self.lora_b}

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        return self.base.weight.float() + self.scaling * (self.lora_b @ self.lora_a).T  # type: ignore[no-any-return]
