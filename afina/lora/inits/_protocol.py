"""What an init says of itself, so that no other file needs to know it by name.

Shapes: R rank, I inputs, O outputs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor, nn

from afina.core.errors import AdapterError

if TYPE_CHECKING:
    from afina.lora.config import LoraConfig
    from afina.lora.layer import Size
    from afina.lora.variants.lora import LoraLinear

Needs = Literal["nothing", "forward", "backward", "originals"]


@dataclass(frozen=True)
class Sources:
    """What an init may look at. `calibrate` runs the model over a few batches: forward alone, or backward too where the
    init needs it. `originals` gives the weight (out, in) that the quantised layer at a path was made from."""

    model: nn.Module
    config: "LoraConfig"
    generator: torch.Generator
    calibrate: Callable[[], None] | None = None
    originals: Callable[[str], Tensor] | None = None


class Init(Protocol):
    """A way to initialise A and B of linear layers.

    `needs`: nothing beyond the weights, calibration by forward passes, or by forward and backward passes, or the
    original weights of a quantised base. `from_base`: the update starts as a part of the base, or as something else
    that is subtracted again, so that the adapter is saved with twice its rank (`LoraLinear.set_factors`).
    `sets_factors`: A and B are replaced after the layers are built; where not, the init also suits layers without A and
    B of their own. `settings`: the names of settings that are read with this init only. `tuned`: `afina tune` tries it.
    """

    name: str
    needs: Needs = "nothing"
    from_base: bool = False
    sets_factors: bool = True
    settings: tuple[str, ...] = ()
    tuned: bool = False

    def refuses(self, config: "LoraConfig") -> Iterator[str]:
        """What is wrong with the settings in `config` for this init, whatever the model."""
        yield from ()

    def largest_rank(self, size: "Size") -> int:
        """The highest rank that a layer of this size can have."""
        return max(size.outputs, size.inputs)

    def check(self, sources: Sources) -> None:
        """Raises `AdapterError` where `sources` lack what the init needs."""
        if self.needs in ("forward", "backward") and sources.calibrate is None:
            raise AdapterError(
                f"init {self.name!r} looks at data", "give `calibrate`, which runs the model over a few batches"
            )
        if self.needs == "originals" and sources.originals is None:
            raise AdapterError(
                f"init {self.name!r} makes up for what quantisation lost",
                "give a quantised base (quantize nf4 or int8), or `inject` the `originals` of its layers",
            )

    def initialise(self, layers: "dict[str, LoraLinear]", sources: Sources) -> None:
        """Sets A and B of `layers` (path → layer), which are in their places in the model."""


class LayerwiseInit(Init, Protocol):
    """An init that looks at one layer after another."""

    def factors(self, w_OI: Tensor, rank: int, scaling: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A (rank, in) and B (out, rank) in fp32 for the frozen weight W and the update s·BA."""

    def initialise(self, layers: "dict[str, LoraLinear]", sources: Sources) -> None:
        for layer in layers.values():
            w_OI = layer.frozen_weight().float()
            a_RI, b_OR = self.factors(w_OI, layer.rank, layer.scaling, sources.generator)
            layer.set_factors(a_RI, b_OR, from_base=self.from_base)
