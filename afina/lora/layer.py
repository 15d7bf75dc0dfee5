"""What adapted layers are made of: the description of a target, and the base classes of the modules that wrap it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from afina.lora.config import LoraConfig

TargetKind = Literal["linear", "embedding", "experts"]


class Size(NamedTuple):
    """One tensor that is adapted: `experts` matrices (outputs, inputs), and the `rank` and `scaling` of their updates.

    Of an embedding, `inputs` is the size of the vocabulary and `outputs` the width.
    """

    outputs: int
    inputs: int
    rank: int
    scaling: float
    experts: int = 1


class ParameterCount(NamedTuple):
    """How many parameters an adapter adds: `trained` get gradients, `fixed` get none."""

    trained: int
    fixed: int = 0

    @classmethod
    def total(cls, counts: Iterable["ParameterCount"]) -> "ParameterCount":
        each = list(counts)
        return cls(sum(count.trained for count in each), sum(count.fixed for count in each))


@dataclass(frozen=True)
class Target:
    """A module to adapt and its dotted `path`.

    `sizes` are by the names of its tensors: "weight" for a layer, one or several for a module that holds experts.
    """

    path: str
    module: Any
    kind: TargetKind
    sizes: dict[str, Size]
    dropout: float

    @property
    def size(self) -> Size:
        """The size of a layer's weight, or of the first tensor of experts."""
        return next(iter(self.sizes.values()))


class Wrapper(nn.Module):
    """A module of an adapter in place of one of the model's, its `base`. Not `enabled`, it acts as its base."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base
        self.enabled = True

    @property
    def weight(self) -> nn.Parameter:
        """The base's weight, for code that looks at it."""
        return self.base.weight  # type: ignore[no-any-return]


class LoraLayer(Wrapper):
    """The base class of all adapted layers: what a variant says of a single layer.

    `kind`: of the targets that it wraps. `additive`: the output is base(x) + scaling · B(A x) and nothing else, so that
    a decoder may join the products of several layers. `decays`: the optimiser's weight decay applies to its parameters.
    `transposed`: the base's weight is (in, out). `target_parameters`: the names of the base's tensors that are adapted
    where the base is not a layer itself (experts).
    """

    kind: TargetKind = "linear"
    additive: bool = False
    decays: bool = False
    transposed: bool = False
    target_parameters: tuple[str, ...] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "additive" not in cls.__dict__:  # never inherited: a subclass that adds to the formula must not be joined
            cls.additive = False

    def __init__(self, target: Target, generator: torch.Generator) -> None:
        super().__init__(target.module)
        self.rank, self.scaling = target.size.rank, target.size.scaling
        self.dropout = nn.Dropout(target.dropout)

    @classmethod
    def check(cls, target: Target, config: "LoraConfig") -> None:
        """Raises `AdapterError` where `config` asks for what this layer cannot do at `target`."""

    @classmethod
    def parameter_count(cls, target: Target) -> ParameterCount:
        """How many parameters the layer adds: by default those of A and B, experts · rank · (in + out)."""
        return ParameterCount(sum(s.experts * s.rank * (s.inputs + s.outputs) for s in target.sizes.values()))

    def frozen_numbers(self) -> int:
        """How many entries of its trained parameters never change."""
        return 0

    def fast_parameters(self) -> list[nn.Parameter]:
        """The parameters that LoRA+ gives a higher learning rate: every B."""
        return []

    def factors(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """A and B of its updates s·BA, where none of their entries is frozen."""
        return []

    def tensors(self) -> dict[str, Tensor]:
        """What is saved of the layer, by the end of PEFT's name for it."""
        raise NotImplementedError

    def shared_tensors(self) -> dict[str, Tensor]:
        """What all layers share and is saved once, by PEFT's name for it after `base_model.`."""
        return {}

    def merged_weight(self) -> Tensor:
        """The weight, in fp32 and the base's shape, with which the base alone would compute what this layer does."""
        raise NotImplementedError

    def merged(self) -> dict[str, Tensor]:
        """The base's tensors that change when the update is merged, by their names."""
        return {"weight": self.merged_weight()}
