"""How fast a machine trains, in seconds per unit of work, so that a forecast is a sum of products."""

from typing import Any

import torch

from afina.core.config import Settings

DISTURBED = 0.3  # processors that others use


class Rates(Settings):
    """Seconds per parameter of the layers: `a_pass` for each pass, whatever its tokens, and `a_token` for each
    token.
    """

    a_pass: float
    a_token: float

    def seconds(self, parameters: float, tokens: float) -> float:
        return parameters * (self.a_pass + self.a_token * tokens)


class Width(Settings):
    """A pass through layers of one width: `forward` alone, the same with `adapted` layers (rank 16), forward and
    backward for the adapters (`lora`), and for all weights (`full`). `few`: one decoding step of 32 sequences.
    """

    forward: Rates
    adapted: Rates
    lora: Rates
    full: Rates
    few: float


class Speed(Settings):
    """Seconds of each unit of work.

    `widths` are by the width of the layers. `attention` (forward; with the backward pass) is per token, earlier token
    and channel; `head` (forward; with its input's gradient; with its own too) per labelled token and parameter;
    `adam` per trained number; `unpack` per number of a dequantised matrix; `write` per byte of a file; `launch` per
    layer of a forward pass, and as much again of a backward pass: what a card's kernels take to be launched, beside
    what they take to run, whichever is longer (0 on a processor). `others`: how many processors other programs used
    while it was measured.
    """

    widths: dict[int, Width]
    attention: tuple[float, float]
    head: tuple[float, float, float]
    adam: float
    unpack: float
    write: float
    launch: float = 0.0
    others: float = 0.0

    @property
    def was_disturbed(self) -> bool:
        return self.others > DISTURBED

    def at(self, width: int) -> Width:
        """The speed at any width, interpolated between those measured, in logarithms."""
        known = sorted(self.widths)
        low = max((w for w in known if w <= width), default=known[0])
        high = min((w for w in known if w >= width), default=known[-1])
        if low == high:
            return self.widths[low]
        share = (torch.tensor(width / low).log() / torch.tensor(high / low).log()).item()
        a, b = self.widths[low].model_dump(), self.widths[high].model_dump()
        return Width.model_validate(_between(a, b, share))


def _between(a: Any, b: Any, share: float) -> Any:
    if isinstance(a, dict):
        return {key: _between(a[key], b[key], share) for key in a}
    return a ** (1 - share) * b**share
