"""LoRA on a mixture of experts, whose weights are tensors of three dimensions rather than layers.

    W_e + s · B_e A_e   for each expert e of E,   A (E·rank, in), B (out, rank·E)

In memory and on disk A holds the experts one after another, B the ranks, each with all experts (as PEFT's
`target_parameters`). The experts are a kind of target of variant lora, not a variant of their own.

Shapes: E experts, R rank, I inputs, O outputs.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from afina.core.errors import AdapterError
from afina.lora.inits import INITS
from afina.lora.inits.kaiming import kaiming_uniform
from afina.lora.layer import LoraLayer, Target

if TYPE_CHECKING:
    from afina.lora.config import LoraConfig


class LoraExperts(LoraLayer):
    """LoRA around a module with tensors of experts, (E, out, in), or (E, in, out) where it says `is_transposed`."""

    kind = "experts"

    def __init__(self, target: Target, generator: torch.Generator) -> None:
        super().__init__(target, generator)
        self.sizes = target.sizes  # by the tensors' names
        self.target_parameters = tuple(target.sizes)
        self.inputs_first = experts_transposed(target.module)
        self.lora_as, self.lora_bs = nn.ParameterDict(), nn.ParameterDict()
        for name, size in target.sizes.items():
            device = getattr(target.module, name).device
            a = kaiming_uniform(size.experts * size.rank, size.inputs, generator)
            self.lora_as[name] = nn.Parameter(a.to(device))
            self.lora_bs[name] = nn.Parameter(torch.zeros(size.outputs, size.rank * size.experts, device=device))

    @classmethod
    def check(cls, target: Target, config: "LoraConfig") -> None:
        hint = "leave it out, or exclude the experts (exclude_modules)"
        if INITS[config.init].sets_factors:
            raise AdapterError(f"init {config.init!r} is for layers; {target.path} holds tensors of experts", hint)
        if config.dropout:
            raise AdapterError(
                f"dropout is for layers; the update of the experts in {target.path} is added to their weights, not to "
                "their outputs",
                hint,
            )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.enabled:
            return self.base(*args, **kwargs)
        adapted = {}
        for name in self.sizes:
            weight = getattr(self.base, name)
            adapted[name] = weight + self.delta(name).to(weight.dtype)
        return functional_call(self.base, adapted, args, kwargs)

    def delta(self, name: str) -> Tensor:
        """s·BA of each expert, in the shape of the tensor `name`, in fp32."""
        size = self.sizes[name]
        a_ERI = self.lora_as[name].unflatten(0, (size.experts, size.rank))
        b_ORE = self.lora_bs[name].unflatten(1, (size.rank, size.experts))
        delta_EOI = size.scaling * torch.einsum("ore,eri->eoi", b_ORE, a_ERI)
        return delta_EOI.mT if self.inputs_first else delta_EOI

    def fast_parameters(self) -> list[nn.Parameter]:
        return list(self.lora_bs.parameters())

    def tensors(self) -> dict[str, Tensor]:
        saved: dict[str, Tensor] = {}
        outer = ["base_layer."] * (len(self.sizes) - 1)  # PEFT wraps once for each tensor, the first one innermost
        for i, name in enumerate(self.sizes):
            prefix = "".join(outer[i:])
            saved |= {f"{prefix}lora_A.weight": self.lora_as[name], f"{prefix}lora_B.weight": self.lora_bs[name]}
        return saved

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        return {name: getattr(self.base, name).float() + self.delta(name) for name in self.sizes}


def expert_tensors(model: nn.Module) -> Iterator[str]:
    """The path of every tensor of experts' weights in `model`, in its order."""
    for path, module in model.named_modules():
        if hasattr(module, "num_experts"):
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() == 3:
                    yield f"{path}.{name}".lstrip(".")


def experts_transposed(module: nn.Module) -> bool:
    """Whether the tensors of experts in `module` are (E, in, out)."""
    return bool(getattr(module, "is_transposed", False))
