"""How the next token is chosen from the logits, and how likely tokens are.

N, B rows; V vocabulary; K tokens that are left to choose from.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from afina.core.errors import AfinaError, NonFiniteLogits

_COLDEST = 1e-30  # temperatures below are this one: fp32 knows no smaller divisor
_FIRST = 512  # tokens among which top_p is looked for before all are sorted


class Constraint(Protocol):
    """What one answer may consist of. It is of one request, so that it may keep how far that has come."""

    def allowed(self, token_ids: Sequence[int]) -> Tensor:
        """Which tokens may come after those of the answer so far, as (V) truth values; tokens beyond its end may not.
        Where the answer is complete these are stop tokens. Raises `AfinaError` where it cannot go on."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 takes the likeliest; the other settings are those of `transformers`,
    in its order, and of OpenAI's API.

    `logit_bias` is added to the logits of tokens; `repetition_penalty` makes tokens that have occurred less likely
    (Keskar et al. 2019, https://arxiv.org/abs/1909.05858); `frequency_penalty` is subtracted for each time that a token
    occurs in the answer, `presence_penalty` once. Then `top_k` (0: all), `top_p` (Holtzman et al. 2020,
    https://arxiv.org/abs/1904.09751) and `min_p`, relative to the likeliest (Nguyen et al. 2024,
    https://arxiv.org/abs/2407.01082), keep the likeliest tokens. An answer ends before any of the strings `stop`, and
    at a stop token unless `ignore_eos`, but has at least `min_tokens`. The same `seed` gives the same answer, whatever
    else is in the batch.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    constraint: Constraint | None = None

    @property
    def is_argmax(self) -> bool:
        """Whether the next token is the one with the largest logit."""
        return self.temperature == 0 and not self._changes_logits

    @property
    def _changes_logits(self) -> bool:
        return (
            self.repetition_penalty != 1
            or bool(self.frequency_penalty or self.presence_penalty or self.logit_bias or self.min_tokens)
            or self.constraint is not None
        )


GREEDY = Sampling()


@dataclass(frozen=True)
class Likelihood:
    """A token, log p of it in the raw distribution (before temperature), and the likeliest tokens with theirs. `text`
    is None where log p is not known: the first token of a prompt."""

    id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


def likelihoods(logits_NV: Tensor, ids: Sequence[int], top: int) -> list[Likelihood]:
    """How likely each of the N tokens `ids` is where the logits stand, with the `top` likeliest beside it."""
    log_p_NV = logits_NV.float().log_softmax(-1)
    own_N = log_p_NV.gather(1, torch.tensor(ids, device=log_p_NV.device)[:, None])[:, 0].tolist()
    best = log_p_NV.topk(min(top, log_p_NV.shape[1]))
    rows = zip(ids, own_N, best.indices.tolist(), best.values.tolist(), strict=True)
    return [Likelihood(token, own, tuple(zip(at, p, strict=True))) for token, own, at, p in rows]


def not_numbers() -> NonFiniteLogits:
    return NonFiniteLogits(
        "the model's logits are NaN or infinite, so it has no answer",
        "`afina doctor` examines the run or the base; try --precision fp32, or an adapter with a smaller alpha",
    )


def finite_likeliest(logits_BV: Tensor) -> list[int | None]:
    """The token with the largest logit of each row; None where that is NaN or infinite."""
    scores_BV = logits_BV.float()  # argmax over bf16 is five times slower
    best_B = scores_BV.argmax(-1)
    finite = scores_BV.gather(-1, best_B[:, None])[:, 0].isfinite()  # NaN counts as the largest
    return [token if good else None for token, good in zip(best_B.tolist(), finite.tolist(), strict=True)]


def likeliest(logits_BV: Tensor) -> list[int]:
    """The token with the largest logit of each row. Raises `NonFiniteLogits`."""
    found = [token for token in finite_likeliest(logits_BV) if token is not None]
    if len(found) < len(logits_BV):
        raise not_numbers()
    return found


class Sampler:
    """Chooses the tokens of one sequence, with a random stream of its own on `device`; an answer that is shorter than
    `min_tokens` gets none of `stop_ids`."""

    def __init__(self, sampling: Sampling, device: torch.device, stop_ids: Sequence[int] = ()) -> None:
        self.sampling = sampling
        self._stops = torch.tensor(sorted(stop_ids), dtype=torch.long, device=device)
        self._generator = torch.Generator(device).manual_seed(sampling.seed) if sampling.temperature else None

    def choose(self, logits_V: Tensor, prompt: Sequence[int], answer: Sequence[int] = ()) -> int:
        """The next token of a sequence that consists of the tokens of its prompt and of its answer so far; the logits
        are finite (`finite_likeliest`). Raises `AfinaError` where the constraint leaves no token."""
        scores_V = logits_V.float()
        if self.sampling._changes_logits:
            scores_V = self._changed(scores_V.clone(), prompt, answer)
        if self._generator is None:
            return int(scores_V.argmax())
        scores_V = (scores_V - scores_V.max()) / max(self.sampling.temperature, _COLDEST)
        ids_K, p_K = _left(scores_V, self.sampling)
        at = torch.multinomial(p_K, 1, generator=self._generator)
        return int(at if ids_K is None else ids_K[at])

    def _changed(self, scores_V: Tensor, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        how, device = self.sampling, scores_V.device
        if how.logit_bias:
            ids, biases = zip(*how.logit_bias, strict=True)
            scores_V.index_add_(0, torch.tensor(ids, device=device), torch.tensor(biases, device=device))
        if how.repetition_penalty != 1.0:
            ids_K = torch.tensor(sorted({*prompt, *answer}), device=device)
            old = scores_V[ids_K]
            new = torch.where(old < 0, old * how.repetition_penalty, old / how.repetition_penalty)
            scores_V[ids_K] = new.nan_to_num(neginf=-torch.inf)
        if answer and (how.frequency_penalty or how.presence_penalty):
            counts = Counter(answer)
            subtracted = [how.presence_penalty + how.frequency_penalty * n for n in counts.values()]
            scores_V[torch.tensor(list(counts), device=device)] -= torch.tensor(subtracted, device=device)
        if len(answer) < how.min_tokens:
            scores_V[self._stops] = -torch.inf
        if how.constraint is not None:
            allowed_V = how.constraint.allowed(answer).to(device)[: len(scores_V)]
            scores_V[: len(allowed_V)].masked_fill_(~allowed_V, -torch.inf)
            scores_V[len(allowed_V) :] = -torch.inf
        if scores_V.max() == -torch.inf:
            raise AfinaError("no token may come next: what is asked of the answer contradicts itself")
        return scores_V


def _left(scores_V: Tensor, how: Sampling) -> tuple[Tensor | None, Tensor]:
    """The tokens that may be drawn (None: all, in their order), and their probabilities up to a factor."""
    if how.top_k:
        found = scores_V.topk(min(how.top_k, len(scores_V)))
        ids_K, p_K = found.indices, found.values.softmax(0)
    elif how.top_p < 1:
        p_V = scores_V.softmax(0)
        p_K, ids_K = p_V.topk(min(_FIRST, len(p_V)))  # sorting all takes twenty times as long
        if p_K.sum() < how.top_p:
            p_K, ids_K = p_V.sort(descending=True)
    else:
        p_V = scores_V.softmax(0)
        if how.min_p:
            p_V[p_V < how.min_p * p_V.max()] = 0
        return None, p_V
    if how.top_p < 1:
        p_K[1:][(p_K.cumsum(0) - p_K)[1:] >= how.top_p] = 0  # the first token that reaches top_p is kept
    if how.min_p:
        p_K[p_K < how.min_p * p_K[0]] = 0
    return ids_K, p_K
