"""The LoRA layers: they wrap a frozen layer and never change it.

    y = W x + s · B (A x),   s = alpha / rank   (Hu et al. 2021, https://arxiv.org/abs/2106.09685, equation 3)

A is (rank, in), B is (out, rank). A starts random and B at zero (for embeddings the other way round), so the adapted model
starts as the base. Both are kept in fp32 and used in the dtype of their input.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LoraLayer(nn.Module):
    """What all LoRA layers share. `base` is the frozen layer; `enabled` off makes the layer be its base."""

    def __init__(self, base: Any, shape: tuple[int, int], rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.base = base
        self.rank, self.alpha, self.scaling = rank, alpha, alpha / rank
        self.enabled = True
        self.dropout = nn.Dropout(dropout)
        out_features, in_features = shape
        device = base.weight.device
        self.lora_a = nn.Parameter(torch.zeros(rank, in_features, device=device))
        self.lora_b = nn.Parameter(torch.zeros(out_features, rank, device=device))

    @property
    def weight(self) -> nn.Parameter:
        """The base layer's weight, for code that looks at it."""
        return self.base.weight  # type: ignore[no-any-return]

    @torch.no_grad()
    def delta(self) -> Tensor:
        """The update s·BA in fp32, in the base weight's shape."""
        return self.scaling * (self.lora_b @ self.lora_a)


class LoraLinear(LoraLayer):
    """LoRA around `nn.Linear`, or around transformers' `Conv1D`, whose weight is (in, out). x is (…, in), y (…, out)."""

    def __init__(self, base: Any, rank: int, alpha: float, dropout: float, generator: torch.Generator) -> None:
        self_transposed = is_conv1d(base)
        shape = base.weight.shape[::-1] if self_transposed else base.weight.shape
        super().__init__(base, (shape[0], shape[1]), rank, alpha, dropout)
        self.transposed = self_transposed
        start = torch.empty(self.lora_a.shape)
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        self.lora_a.data.copy_(start)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        if not self.enabled:
            return y
        low = F.linear(self.dropout(x), self.lora_a.to(x.dtype))
        return y + F.linear(low * self.scaling, self.lora_b.to(x.dtype))

    @torch.no_grad()
    def delta(self) -> Tensor:
        return super().delta().T if self.transposed else super().delta()


class LoraEmbedding(LoraLayer):
    """LoRA around `nn.Embedding`: A is (rank, words), B is (width, rank). ids are (…), y is (…, width)."""

    def __init__(self, base: Any, rank: int, alpha: float, dropout: float, generator: torch.Generator) -> None:
        words, width = base.weight.shape
        super().__init__(base, (width, words), rank, alpha, dropout)
        self.lora_b.data.copy_(torch.randn(self.lora_b.shape, generator=generator))

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.base(ids)
        if not self.enabled:
            return y
        low = F.embedding(ids, self.lora_a.T.to(y.dtype))
        scale = self.scaling * getattr(self.base, "embed_scale", 1.0)  # some models scale their embeddings
        return y + F.linear(self.dropout(low), self.lora_b.to(y.dtype)) * scale

    @torch.no_grad()
    def delta(self) -> Tensor:
        return super().delta().T


def is_conv1d(module: nn.Module) -> bool:
    """Whether `module` is GPT-2's linear layer, known by its name so that transformers need not be imported."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")
