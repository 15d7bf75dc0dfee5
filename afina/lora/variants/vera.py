"""VeRA: two trained vectors per layer, and random matrices that all layers share (Kopiczko et al. 2024,
https://arxiv.org/abs/2310.11454, equation 2).

    y = W x + b ∘ B (d ∘ A x),   A (rank, widest in), B (widest out, rank) frozen, d (rank,) and b (out,) trained

A layer uses the first columns of A and the first rows of B, as many as it has inputs and outputs. b is initialised to
zero, d to 0.1.

Shapes: T tokens (in any number of leading dimensions), R rank, I inputs, O outputs.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afina.core.layers import is_conv1d
from afina.lora.inits import INITS
from afina.lora.inits.kaiming import kaiming_uniform
from afina.lora.layer import LoraLayer, ParameterCount, Target
from afina.lora.variants import Variant

if TYPE_CHECKING:
    from afina.lora.config import LoraConfig


class Projections:
    """The A and B that all layers share, for the widest of `targets`."""

    def __init__(self, targets: Sequence[Target], generator: torch.Generator) -> None:
        rank, inputs, outputs = _shared_sizes(targets)
        self.a, self.b = (kaiming_uniform(*shape, generator) for shape in ((rank, inputs), (outputs, rank)))
        self._there: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    @torch.inference_mode(False)  # training may use these tensors later
    def like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both on the device and in the format of `x`, which keeps them from then on."""
        key = (x.device, x.dtype)
        if key not in self._there:
            self._there[key] = self.a.to(x), self.b.to(x)
        return self._there[key]


class VeraLinear(LoraLayer):
    """VeRA around a linear layer. x is (…, in), y (…, out)."""

    def __init__(self, target: Target, generator: torch.Generator, shared: Projections) -> None:
        super().__init__(target, generator)
        self.transposed = is_conv1d(target.module)
        self.shared = shared
        self.outputs, self.inputs = target.size.outputs, target.size.inputs
        device = target.module.weight.device
        self.vera_lambda_d = nn.Parameter(torch.full((self.rank,), 0.1, device=device))
        self.vera_lambda_b = nn.Parameter(torch.zeros(self.outputs, device=device))

    @classmethod
    def parameter_count(cls, target: Target) -> ParameterCount:
        return ParameterCount(target.size.rank + target.size.outputs)

    def forward(self, x_TI: Tensor) -> Tensor:
        y_TO: Tensor = self.base(x_TI)
        if not self.enabled:
            return y_TO
        a_RI, b_OR = self._projections(x_TI)
        low_TR = F.linear(self.dropout(x_TI), a_RI) * self.vera_lambda_d.to(x_TI.dtype)
        return y_TO + F.linear(low_TR, b_OR) * self.vera_lambda_b.to(x_TI.dtype)

    def _projections(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.shared.like(x)
        return a[:, : self.inputs], b[: self.outputs]

    def tensors(self) -> dict[str, Tensor]:
        return {"vera_lambda_d": self.vera_lambda_d, "vera_lambda_b": self.vera_lambda_b}

    def shared_tensors(self) -> dict[str, Tensor]:
        return {"vera_A": self.shared.a, "vera_B": self.shared.b}

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        a_RI, b_OR = self._projections(self.vera_lambda_b)
        delta_OI = (self.vera_lambda_b[:, None] * b_OR) @ (self.vera_lambda_d[:, None] * a_RI)
        merged: Tensor = self.base.weight.float() + (delta_OI.T if self.transposed else delta_OI)
        return merged


class _Vera(Variant):
    name = "vera"
    layers = (VeraLinear,)
    peft_type = "VERA"

    def refuses(self, config: "LoraConfig") -> Iterator[str]:
        if INITS[config.init].sets_factors:
            yield f"init {config.init!r} is of no use to vera, whose A and B are random"
        if config.rslora:
            yield "vera has no scaling, so rslora would change nothing"
        if config.rank_pattern or config.alpha_pattern:
            yield "vera's layers share A and B and have one rank; leave rank_pattern and alpha_pattern out"

    def build(self, targets: Sequence[Target], generator: torch.Generator) -> list[LoraLayer]:
        if not targets:
            return []
        shared = Projections(targets, generator)
        return [VeraLinear(target, generator, shared) for target in targets]

    def parameter_count(self, targets: Sequence[Target]) -> ParameterCount:
        rank, inputs, outputs = _shared_sizes(targets)
        return ParameterCount(super().parameter_count(targets).trained, rank * (inputs + outputs))

    def from_peft(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        return {"rank": raw["r"], "dropout": raw.get("vera_dropout", 0.0)}

    def to_peft(self, config: "LoraConfig", common: dict[str, Any]) -> dict[str, Any]:
        known = {key: value for key, value in common.items() if key != "exclude_modules"}  # VeraConfig has none
        return known | {"peft_type": self.peft_type, "vera_dropout": config.dropout, "save_projection": True}

    def seed(self, raw: Mapping[str, Any]) -> int:
        return raw.get("projection_prng_key") or 0

    def may_be_absent(self, name: str, raw: Mapping[str, Any]) -> bool:
        """PEFT may leave out A and B, which are drawn from the seed again."""
        return raw.get("save_projection") is False and name.rpartition(".")[2] in ("vera_A", "vera_B")


def _shared_sizes(targets: Sequence[Target]) -> tuple[int, int, int]:
    """The rank, and the largest numbers of inputs and of outputs."""
    sizes = [target.size for target in targets]
    return (
        max((size.rank for size in sizes), default=0),
        max((size.inputs for size in sizes), default=0),
        max((size.outputs for size in sizes), default=0),
    )


VARIANT = _Vera()
