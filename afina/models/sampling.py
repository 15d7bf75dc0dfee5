"""How the next tokens of a batch are chosen from the logits, on their device and without waiting for it, and how
likely tokens are.

N, B, P rows; V vocabulary; K tokens that are left to choose from; L tokens that have occurred.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from afina.core.device import later, overlaps, sent, widest
from afina.core.errors import AfinaError, NonFiniteLogits

_COLDEST = 1e-30  # temperatures below are this one: fp32 knows no smaller divisor
_FIRST = 512  # tokens among which top_p is looked for before all are sorted
_ROOM = 64  # tokens that an answer's history has room for at first


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
        return self.temperature == 0 and not self.changes_logits

    @property
    def changes_logits(self) -> bool:
        return self.penalises or bool(self.logit_bias or self.min_tokens) or self.constraint is not None

    @property
    def penalises(self) -> bool:
        """Whether it matters which tokens have occurred."""
        return self.repetition_penalty != 1 or self.penalises_answer

    @property
    def penalises_answer(self) -> bool:
        """Whether it matters which ones the answer holds, and how often."""
        return bool(self.frequency_penalty or self.presence_penalty)


GREEDY = Sampling()


@dataclass(frozen=True)
class Likelihood:
    """A token, log p of it in the raw distribution (before temperature), and the likeliest tokens with theirs. `text`
    is None where log p is not known: the first token of a prompt."""

    id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


class Likelihoods:
    """How likely each of the N tokens `ids_N` is where the logits stand, with the `top` likeliest beside it: computed
    on their device now, and read when it is needed."""

    def __init__(self, logits_NV: Tensor, ids_N: Tensor, top: int) -> None:
        log_p_NV = logits_NV.float().log_softmax(-1)
        own_N = log_p_NV.gather(1, ids_N[:, None])[:, 0]
        best = log_p_NV.topk(min(top, log_p_NV.shape[1]))
        self._parts = [later(part) for part in (ids_N, own_N, best.indices, best.values)]

    def read(self) -> list[Likelihood]:
        rows = zip(*(part().tolist() for part in self._parts), strict=True)
        return [Likelihood(token, own, tuple(zip(at, p, strict=True))) for token, own, at, p in rows]


def likelihoods(logits_NV: Tensor, ids: Sequence[int], top: int) -> list[Likelihood]:
    """`Likelihoods` of these tokens, read at once."""
    return Likelihoods(logits_NV, torch.tensor(ids, device=logits_NV.device), top).read()


def not_numbers() -> NonFiniteLogits:
    return NonFiniteLogits(
        "the model's logits are NaN or infinite, so it has no answer",
        "`afina doctor` examines the run or the base; try --precision fp32, or an adapter with a smaller alpha",
    )


def likeliest(logits_BV: Tensor) -> list[int]:
    """The token with the largest logit of each row. Raises `NonFiniteLogits`."""
    best_B, finite_B = _likeliest(logits_BV.float())
    if not finite_B.all():
        raise not_numbers()
    found: list[int] = best_B.tolist()
    return found


def _likeliest(scores_BV: Tensor) -> tuple[Tensor, Tensor]:
    """The token with the largest score of each row, and whether that is a number; fp32, for argmax over bf16 is five
    times slower."""
    best_B = scores_BV.argmax(-1)
    return best_B, scores_BV.gather(-1, best_B[:, None])[:, 0].isfinite()  # NaN counts as the largest


# ------------------------------------------------------------------------------------------------ choosing


class Sampler:
    """How the tokens of one sequence are chosen, with a random stream of its own on `device`; an answer that is shorter
    than `min_tokens` gets none of `stop_ids`. `answer` are the tokens of the answer so far, a list that its owner
    extends as they become known; only a constraint looks there, for what penalties need is kept on the device."""

    def __init__(
        self, sampling: Sampling, device: torch.device, stop_ids: Sequence[int] = (), prompt: Sequence[int] = (),
        answer: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self.sampling, self.answer, self._device = sampling, answer, device
        self.generator = torch.Generator(device).manual_seed(sampling.seed) if sampling.temperature else None
        self.length = len(answer)  # of the answer, with tokens that the host does not know yet
        self.stops = self._sent(sorted(stop_ids), torch.long) if sampling.min_tokens else None
        self.bias = None
        if sampling.logit_bias:
            ids, biases = zip(*sampling.logit_bias, strict=True)
            self.bias = self._sent(ids, torch.long), self._sent(biases, torch.float32)
        self._begin = len(prompt)
        self._history: Tensor | None = None
        if sampling.penalises:
            history = [*prompt, *answer]
            self._history = self._sent([*history, *[0] * max(_ROOM, len(history))], torch.long)

    def _sent(self, values: Sequence[Any], dtype: torch.dtype) -> Tensor:
        return sent(torch.tensor(values, dtype=dtype), self._device)

    def occurred(self, since: int = 0) -> Tensor:
        """The tokens of the sequence from the one at `since` on."""
        assert self._history is not None
        return self._history[since : self._begin + self.length]

    @property
    def answered(self) -> Tensor:
        """Those of the answer."""
        return self.occurred(self._begin)

    def took(self, token: Tensor) -> None:
        """Notes the next token, a number on the device."""
        if self._history is not None:
            at = self._begin + self.length
            if at == len(self._history):
                self._history = torch.cat([self._history, torch.empty_like(self._history)])
            self._history[at] = token
        self.length += 1


_NOT_FINITE, _NOTHING = -1, -2  # in the place of a token


class Choice:
    """The next tokens of a batch. `tokens_B` are on the device, each one of the vocabulary, also where there is none
    to choose."""

    def __init__(self, tokens_B: Tensor, told_B: Tensor, faults: dict[int, Exception]) -> None:
        self.tokens_B, self._told, self._faults = tokens_B, later(told_B), faults

    def read(self) -> list[int | Exception]:
        """The tokens, or why there is none."""
        found: list[int | Exception] = self._told().tolist()
        for i, token in enumerate(found):
            if token == _NOT_FINITE:
                found[i] = not_numbers()
            elif i in self._faults:
                found[i] = self._faults[i]
            elif token == _NOTHING:
                found[i] = AfinaError("no token may come next: what is asked of the answer contradicts itself")
        return found


def choose(samplers: Sequence[Sampler], logits_BV: Tensor) -> Choice:
    """The next token of each sequence.

    What a row gets depends on nothing but its own logits and its own sampler, whatever else is in the batch. The cost
    is that of a few operations over the rows of each kind of sampling, and one for each row that draws.
    """
    scores_BV = logits_BV.float()
    tokens_B, finite_B = _likeliest(scores_BV)
    told_B, faults = tokens_B, {}
    if changed := [i for i, sampler in enumerate(samplers) if sampler.sampling.changes_logits]:
        own = [samplers[i] for i in changed]
        rows_PV, raised = _changed(_rows(scores_BV, changed), own)
        faults = {changed[i]: fault for i, fault in raised.items()}
        scores_BV = _with_rows(scores_BV, changed, rows_PV)
        tokens_B = _with_rows(tokens_B, changed, rows_PV.argmax(-1))
        told_B = _with_rows(tokens_B, changed, rows_PV.argmax(-1).where(rows_PV.amax(-1) != -torch.inf, _NOTHING))
    kinds: dict[Any, list[int]] = {}
    for i, sampler in enumerate(samplers):
        if sampler.generator is not None:
            kinds.setdefault((sampler.sampling.top_k, sampler.sampling.top_p < 1), []).append(i)
    for rows in kinds.values():
        drawn_N = _drawn(_rows(scores_BV, rows), [samplers[i] for i in rows], overlaps(scores_BV.device))
        told_N = _rows(told_B, rows)
        told_B = _with_rows(told_B, rows, drawn_N.where(told_N != _NOTHING, told_N))
        tokens_B = _with_rows(tokens_B, rows, drawn_N)
    for i, sampler in enumerate(samplers):
        sampler.took(tokens_B[i])
    return Choice(tokens_B, told_B.where(finite_B, _NOT_FINITE), faults)


def _rows(x_B: Tensor, rows: list[int]) -> Tensor:
    return x_B if len(rows) == len(x_B) else x_B.index_select(0, sent(torch.tensor(rows), x_B.device))


def _with_rows(x_B: Tensor, rows: list[int], new: Tensor) -> Tensor:
    return new if len(rows) == len(x_B) else x_B.index_copy(0, sent(torch.tensor(rows), x_B.device), new)


def _column(samplers: Sequence[Sampler], value: Callable[[Sampling], float], like: Tensor) -> Tensor:
    """A number of each row, (N, 1), in the dtype of `like`."""
    numbers = torch.tensor([value(sampler.sampling) for sampler in samplers], dtype=like.dtype)
    return sent(numbers, like.device)[:, None]


def _drawn(scores_NV: Tensor, samplers: Sequence[Sampler], whole: bool) -> Tensor:
    """A token (N) of each row, of one kind of sampling. `whole`: all tokens are sorted for top_p, which a card does
    sooner than it tells whether the first few are enough."""
    how = samplers[0].sampling
    temperature = _column(samplers, lambda how: max(how.temperature, _COLDEST), scores_NV)
    cooled_NV = (scores_NV - scores_NV.amax(-1, keepdim=True)).div_(temperature)
    top_p = _column(samplers, lambda how: how.top_p, scores_NV)
    ids_NK = None
    if how.top_k:
        scores_NK, ids_NK = cooled_NV.topk(min(how.top_k, cooled_NV.shape[1]))
        p_NK = scores_NK.softmax(-1)
    else:
        p_NK = cooled_NV.softmax(-1)
        if how.top_p < 1 and whole:
            p_NK, ids_NK = p_NK.sort(descending=True)
        elif how.top_p < 1:
            p_NK, ids_NK = p_NK.topk(min(_FIRST, p_NK.shape[1]))  # sorting all takes twenty times as long
            if (p_NK.sum(-1, keepdim=True) < top_p).any():
                return _drawn_by_parts(scores_NV, samplers, p_NK.sum(-1, keepdim=True) < top_p)
    if how.top_p < 1:
        beyond = p_NK.cumsum(-1) - p_NK >= top_p
        beyond[:, 0] = False  # the first token that reaches top_p is kept
        p_NK.masked_fill_(beyond, 0)
    if any(sampler.sampling.min_p for sampler in samplers):
        least = _column(samplers, lambda how: how.min_p, p_NK)
        p_NK.masked_fill_(p_NK < least * p_NK.amax(-1, keepdim=True), 0)
    # As torch.multinomial draws one: argmax p / q, with q of an exponential distribution; here each row has its stream.
    q_NK = torch.empty_like(p_NK)
    for q_K, sampler in zip(q_NK, samplers, strict=True):
        q_K.exponential_(generator=sampler.generator)
    at_N = torch.div(p_NK, q_NK, out=q_NK).argmax(-1)
    return at_N if ids_NK is None else ids_NK.gather(1, at_N[:, None])[:, 0]


def _drawn_by_parts(scores_NV: Tensor, samplers: Sequence[Sampler], short_N1: Tensor) -> Tensor:
    """`_drawn`, where for some rows the first tokens are not enough."""
    tokens_N = torch.empty(len(samplers), dtype=torch.long)
    for whole in (False, True):
        rows = [i for i, (short,) in enumerate(short_N1.tolist()) if short == whole]
        if rows:
            tokens_N[rows] = _drawn(scores_NV[rows], [samplers[i] for i in rows], whole)
    return tokens_N


def _changed(scores_PV: Tensor, samplers: Sequence[Sampler]) -> tuple[Tensor, dict[int, Exception]]:
    """The scores of rows that are changed before anything is drawn, and what the constraints of some raised."""
    scores_PW = F.pad(scores_PV, (0, 1))  # a column more, for what is no token
    device, nothing = scores_PV.device, torch.empty(0, dtype=torch.long, device=scores_PV.device)

    def ids_of(tokens: list[Tensor]) -> Tensor:
        return pad_sequence(tokens, batch_first=True, padding_value=float(scores_PV.shape[1]))

    for scores_W, sampler in zip(scores_PW, samplers, strict=True):
        if sampler.bias is not None:
            scores_W.index_add_(0, *sampler.bias)
    if any(sampler.sampling.repetition_penalty != 1 for sampler in samplers):
        ids_PL = ids_of([s.occurred() if s.sampling.repetition_penalty != 1 else nothing for s in samplers])
        by = _column(samplers, lambda how: how.repetition_penalty, scores_PW)
        old = scores_PW.gather(1, ids_PL)
        new = torch.where(old < 0, old * by, old / by).nan_to_num(neginf=-torch.inf)
        scores_PW.scatter_(1, ids_PL, new)
    if any(sampler.sampling.penalises_answer and sampler.length for sampler in samplers):
        ids_PL = ids_of([s.answered if s.sampling.penalises_answer else nothing for s in samplers])
        in_order = ids_PL.sort(-1).values
        counts = torch.searchsorted(in_order, ids_PL, right=True) - torch.searchsorted(in_order, ids_PL)
        frequency, presence = (
            _column(samplers, value, torch.empty(0, dtype=widest(device), device=device))
            for value in (lambda how: how.frequency_penalty, lambda how: how.presence_penalty)
        )
        scores_PW.scatter_(1, ids_PL, scores_PW.gather(1, ids_PL) - (presence + frequency * counts).float())
    faults: dict[int, Exception] = {}
    for i, sampler in enumerate(samplers):
        if sampler.stops is not None and sampler.length < sampler.sampling.min_tokens:
            scores_PW[i].index_fill_(0, sampler.stops, -torch.inf)
        if sampler.sampling.constraint is not None:
            try:
                _constrain(scores_PW[i], sampler.sampling.constraint.allowed(sampler.answer))
            except Exception as fault:  # whatever a constraint raises, others have nothing to do with it
                faults[i] = fault
    return scores_PW[:, :-1], faults


def _constrain(scores_V: Tensor, allowed: Tensor) -> None:
    allowed_V = sent(allowed, scores_V.device)[: len(scores_V)]
    scores_V[: len(allowed_V)].masked_fill_(~allowed_V, -torch.inf)
    scores_V[len(allowed_V) :] = -torch.inf
