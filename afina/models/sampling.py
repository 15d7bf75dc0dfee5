"""How the next token is chosen from the logits.

V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from afina.core.errors import NonFiniteLogits


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 takes the likeliest; the other settings are those of `transformers`.

    `top_k` (0: all) and `top_p` keep the likeliest tokens (Holtzman et al. 2020, https://arxiv.org/abs/1904.09751);
    `repetition_penalty` makes tokens that have occurred less likely (Keskar et al. 2019,
    https://arxiv.org/abs/1909.05858); an answer ends before any of the strings `stop`. The same `seed` gives the same
    answer, whatever else is in the batch.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    @property
    def is_argmax(self) -> bool:
        """Whether the next token is the one with the largest logit."""
        return self.temperature == 0 and self.repetition_penalty == 1


GREEDY = Sampling()


def likeliest(logits_BV: Tensor) -> list[int]:
    """The token with the largest logit of each row. Raises `NonFiniteLogits`."""
    scores_BV = logits_BV.float()  # argmax over bf16 is five times slower
    best_B = scores_BV.argmax(-1)
    if not scores_BV.gather(-1, best_B[:, None]).isfinite().all():  # NaN counts as the largest
        raise NonFiniteLogits(
            "the model's logits are NaN or infinite, so it has no answer",
            "`afina doctor` examines the run or the base; try --precision fp32, or an adapter with a smaller alpha",
        )
    return best_B.tolist()


class Sampler:
    """Chooses the tokens of one sequence, with a random stream of its own on `device`."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self.sampling = sampling
        self._generator = torch.Generator(device).manual_seed(sampling.seed) if sampling.temperature else None

    def choose(self, logits_V: Tensor, seen: Sequence[int]) -> int:
        """The next token of a sequence that consists of the tokens `seen` (prompt and answer)."""
        how = self.sampling
        likeliest(logits_V[None])  # which refuses what are no numbers
        scores_V = logits_V.float()
        if how.repetition_penalty != 1.0:
            ids = torch.tensor(sorted(set(seen)), device=scores_V.device)
            old = scores_V[ids]
            scores_V = scores_V.index_put(
                (ids,), torch.where(old < 0, old * how.repetition_penalty, old / how.repetition_penalty)
            )
        if self._generator is None:
            return int(scores_V.argmax())
        ranked_V, order_V = (scores_V / how.temperature).sort(descending=True)
        p_V = ranked_V.softmax(0)
        dropped_V = p_V.cumsum(0) - p_V >= how.top_p  # the first token that reaches top_p is kept
        if how.top_k:
            dropped_V[how.top_k :] = True
        p_V[dropped_V] = 0.0
        return int(order_V[torch.multinomial(p_V, 1, generator=self._generator)])
