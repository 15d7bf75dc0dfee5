"""LoRA: low-rank updates beside frozen weights (Hu et al. 2021, https://arxiv.org/abs/2106.09685, equation 3).

    y = W x + s · B (A x),   s = alpha / rank

A is (rank, in), B is (out, rank). A starts random and B at zero (for embeddings the other way round), so the adapted
model starts as the base. Both are kept in fp32 and used in the dtype of their input.

Shapes: T tokens (in any number of leading dimensions), R rank, I inputs, O outputs, V vocabulary.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afina.core.errors import AdapterError
from afina.core.layers import is_conv1d
from afina.lora.inits import INITS
from afina.lora.inits.kaiming import kaiming_uniform
from afina.lora.layer import LoraLayer, Target
from afina.lora.variants import Variant
from afina.lora.variants._experts import LoraExperts

if TYPE_CHECKING:
    from afina.lora.config import LoraConfig


class LoraLinear(LoraLayer):
    """LoRA around `nn.Linear`, or transformers' `Conv1D`, whose weight is (in, out). x is (…, in), y (…, out)."""

    additive = True

    def __init__(self, target: Target, generator: torch.Generator) -> None:
        super().__init__(target, generator)
        self.transposed = is_conv1d(target.module)
        self.frozen_ranks = 0
        size, device = target.size, target.module.weight.device
        self.lora_a = nn.Parameter(kaiming_uniform(size.rank, size.inputs, generator).to(device))
        self.lora_b = nn.Parameter(torch.zeros(size.outputs, size.rank, device=device))

    @classmethod
    def check(cls, target: Target, config: "LoraConfig") -> None:
        check_rank(target, config)

    def forward(self, x_TI: Tensor) -> Tensor:
        y_TO: Tensor = self.base(x_TI)
        return y_TO + self.update(x_TI) if self.enabled else y_TO

    def update(self, x_TI: Tensor) -> Tensor:
        """s · B (A x), (…, out)."""
        low_TR = F.linear(self.dropout(x_TI), self.lora_a.to(x_TI.dtype))
        return F.linear(low_TR * self.scaling, self.lora_b.to(x_TI.dtype))

    def frozen_weight(self) -> Tensor:
        """W, (out, in)."""
        weight: Tensor = self.base.weight.detach()
        return weight.T if self.transposed else weight

    @torch.no_grad()
    def set_factors(self, a_RI: Tensor, b_OR: Tensor, from_base: bool = False) -> None:
        """Makes training begin with these A and B, of any rank.

        `from_base`: the update is zero at first all the same. The initial s·B₀A₀ is subtracted in the product, by as
        many frozen ranks again, s·[B, −B₀][A; A₀], rather than from the base, which others share. With rank 1, A₀ = (2)
        and B₀ = (3): A = (2; 2), B = (3, −3), BA = 6 − 6 = 0; after a step on the first rank alone, to A = (2.1; 2), it
        is 6.3 − 6 = 0.3.
        """
        rank = len(a_RI)
        if from_base:
            a_RI, b_OR = torch.cat([a_RI, a_RI]), torch.cat([b_OR, -b_OR], 1)
        self.rank, self.frozen_ranks = len(a_RI), rank if from_base else 0
        self.lora_a = nn.Parameter(a_RI.to(self.lora_a).contiguous())
        self.lora_b = nn.Parameter(b_OR.to(self.lora_b).contiguous())
        if from_base:
            self.lora_a.register_hook(lambda grad: torch.cat([grad[:rank], torch.zeros_like(grad[rank:])]))
            self.lora_b.register_hook(lambda grad: torch.cat([grad[:, :rank], torch.zeros_like(grad[:, rank:])], 1))

    def frozen_numbers(self) -> int:
        a_RI, b_OR = self.lora_a, self.lora_b
        return self.frozen_ranks * (a_RI.shape[1] * a_RI.requires_grad + b_OR.shape[0] * b_OR.requires_grad)

    def fast_parameters(self) -> list[nn.Parameter]:
        return [self.lora_b]

    def factors(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return [] if self.frozen_numbers() else [(self.lora_a, self.lora_b)]

    def tensors(self) -> dict[str, Tensor]:
        return {"lora_A.weight": self.lora_a, "lora_B.weight": self.lora_b}

    @torch.no_grad()
    def delta(self) -> Tensor:
        """s·BA, (out, in), in fp32."""
        return self.scaling * (self.lora_b @ self.lora_a)

    def merged_weight(self) -> Tensor:
        merged_OI = self.frozen_weight().float() + self.delta()
        return merged_OI.T if self.transposed else merged_OI


class LoraEmbedding(LoraLayer):
    """LoRA around `nn.Embedding`: A is (rank, vocabulary), B is (width, rank). ids are (…), y is (…, width)."""

    kind = "embedding"
    additive = True

    def __init__(self, target: Target, generator: torch.Generator) -> None:
        super().__init__(target, generator)
        size, device = target.size, target.module.weight.device
        self.lora_a = nn.Parameter(torch.zeros(size.rank, size.inputs, device=device))
        self.lora_b = nn.Parameter(torch.randn(size.outputs, size.rank, generator=generator).to(device))

    @classmethod
    def check(cls, target: Target, config: "LoraConfig") -> None:
        check_rank(target, config)

    def forward(self, ids_T: Tensor) -> Tensor:
        y_TO: Tensor = self.base(ids_T)
        if not self.enabled:
            return y_TO
        low_TR = F.embedding(ids_T, self.lora_a.T.to(y_TO.dtype))
        scale = self.scaling * getattr(self.base, "embed_scale", 1.0)  # some models scale their embeddings
        return y_TO + F.linear(self.dropout(low_TR), self.lora_b.to(y_TO.dtype)) * scale

    def fast_parameters(self) -> list[nn.Parameter]:
        return [self.lora_b]

    def tensors(self) -> dict[str, Tensor]:
        return {"lora_embedding_A": self.lora_a, "lora_embedding_B": self.lora_b}

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        weight_VO: Tensor = self.base.weight.float()
        return weight_VO + self.scaling * (self.lora_b @ self.lora_a).T


def check_rank(target: Target, config: "LoraConfig") -> None:
    """Raises `AdapterError` where the rank is higher than the layer or the init allows."""
    most = INITS[config.init].largest_rank(target.size)
    if target.size.rank > most:
        raise AdapterError(
            f"rank {target.size.rank} is more than the layer {target.path} is wide ({most})", "lower the rank"
        )


class _Lora(Variant):
    name = "lora"
    layers = (LoraLinear, LoraEmbedding, LoraExperts)
    peft_type = "LORA"
    summable = True
    tuned = True

    def reads(self, raw: Mapping[str, Any]) -> bool:
        return super().reads(raw) and not raw.get("use_dora")


VARIANT = _Lora()
