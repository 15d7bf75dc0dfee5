"""LoRA on a mixture of experts, whose weights are tensors of three dimensions rather than layers.

    W_e + s · B_e A_e   for each expert e of E,   A (E·r, in), B (out, r·E)

In memory and on disk A holds the experts one after another, B the ranks, each with all experts (as PEFT's `target_parameters`).
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from afina.lora.layer import LoraLayer, Size


def expert_tensors(model: nn.Module) -> Iterator[str]:
    """The path of every tensor of experts' weights in `model`, in its order."""
    for path, module in model.named_modules():
        if hasattr(module, "num_experts"):
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() == 3:
                    yield f"{path}.{name}".lstrip(".")


class LoraExperts(LoraLayer):
    """LoRA around a module that holds tensors of experts, (E, out, in), or (E, in, out) where it says `is_transposed`."""

    additive = False

    def __init__(self, base: Any, sizes: dict[str, Size], generator: torch.Generator) -> None:
        super().__init__(base, next(iter(sizes.values())))
        self.sizes = sizes  # by the tensors' names
        self.turned = bool(getattr(base, "is_transposed", False))
        self.lora_as, self.lora_bs = nn.ParameterDict(), nn.ParameterDict()
        for name, size in sizes.items():
            weight = getattr(base, name)
            experts, outputs, inputs = weight.mT.shape if self.turned else weight.shape
            a = torch.empty(experts * size.rank, inputs)
            nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=generator)
            self.lora_as[name] = nn.Parameter(a.to(weight.device))
            self.lora_bs[name] = nn.Parameter(torch.zeros(outputs, size.rank * experts, device=weight.device))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.enabled:
            return self.base(*args, **kwargs)
        adapted = {}
        for name in self.sizes:
            weight = getattr(self.base, name)
            adapted[name] = weight + self.delta(name).to(weight.dtype)
        return functional_call(self.base, adapted, args, kwargs)

    def delta(self, name: str) -> Tensor:
        """s·BA of each expert, in the tensor's shape, in fp32."""
        experts, size = len(getattr(self.base, name)), self.sizes[name]
        a_ERI = self.lora_as[name].unflatten(0, (experts, size.rank))
        b_ORE = self.lora_bs[name].unflatten(1, (size.rank, experts))
        delta = size.scaling * torch.einsum("ore,eri->eoi", b_ORE, a_ERI)
        return delta.mT if self.turned else delta

    def tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        inner = ["base_layer."] * (len(self.sizes) - 1)  # PEFT wraps once for each tensor, the first one innermost
        for i, name in enumerate(self.sizes):
            prefix = "".join(inner[i:])
            found |= {f"{prefix}lora_A.weight": self.lora_as[name], f"{prefix}lora_B.weight": self.lora_bs[name]}
        return found

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        return {name: getattr(self.base, name).float() + self.delta(name) for name in self.sizes}
