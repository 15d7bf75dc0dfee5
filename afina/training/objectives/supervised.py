"""Supervised learning: the cross-entropy of each labelled token, given those before it, in nats."""

from collections.abc import Sequence

from torch import Tensor

from afina.data.batch import HostPack, host_pack, passes
from afina.data.store import lengths
from afina.data.template import Row
from afina.engine.forest import Group
from afina.models.load import Base
from afina.training.loss import device_of, perplexity, summed_loss


class Supervised:
    """A unit is a row, and weighs as much as it has labelled tokens."""

    name = "supervised"
    measure = "loss"
    lower_is_better = True

    def units(self, rows: Sequence[Row]) -> Sequence[Row]:
        return rows

    def lengths(self, units: Sequence[Row]) -> Sequence[int]:
        return lengths(units)

    def prompt(self, unit: Row) -> Sequence[int]:
        return unit.prompt

    def weight(self, unit: Row) -> float:
        return unit.labelled

    def passes(self, base: Base, units: Sequence[Row], max_tokens: int, max_units: int | None) -> list[Group]:
        return passes(units, max_tokens, max_units, base.model.shares)

    def batch(self, base: Base, units: Sequence[Row]) -> HostPack:
        return host_pack(units, device_of(base), base.model.shares, base.facts.vocabulary)

    def loss(self, base: Base, batch: HostPack) -> Tensor:
        return base.model.summed_loss(batch.to(device_of(base)))

    def sums(self, base: Base, units: Sequence[Row]) -> Sequence[float]:
        return summed_loss(base, units)

    def numbers(self, sums: Sequence[float]) -> dict[str, float]:
        nats, tokens = sums
        return {"loss": nats / tokens, "perplexity": perplexity(nats / tokens)}


OBJECTIVE = Supervised()
