"""LoftQ: s·BA = the matrix of that rank nearest to W − Q(W), what quantisation lost (Li et al. 2023,
https://arxiv.org/abs/2310.08659, algorithm 1 with one step, for the quantised base stays as it is)."""

from typing import TYPE_CHECKING

from afina.core.errors import AdapterError
from afina.lora.inits import Init, Needs, Sources
from afina.lora.inits._decompositions import low_rank_factors

if TYPE_CHECKING:
    from afina.lora.layer import Size
    from afina.lora.variants.lora import LoraLinear


class _Loftq(Init):
    name = "loftq"
    needs: Needs = "originals"

    def largest_rank(self, size: "Size") -> int:
        return min(size.outputs, size.inputs)

    def initialise(self, layers: "dict[str, LoraLinear]", sources: Sources) -> None:
        assert sources.originals is not None
        lost = False
        for path, layer in layers.items():
            w_OI = layer.frozen_weight().float()
            residual_OI = sources.originals(path).to(w_OI) - w_OI
            if residual_OI.any():  # a layer that lost nothing keeps the usual init: from zeros it could not learn
                layer.set_factors(*low_rank_factors(residual_OI, layer.rank, layer.scaling))
                lost = True
        if not lost:
            raise AdapterError(
                "init 'loftq' makes up for what quantisation lost, and no layer lost anything", "leave it out"
            )


INIT = _Loftq()
