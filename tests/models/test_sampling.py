"""How the next token is chosen, against the processors of transformers and against row by row."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from afina.core.errors import AfinaError, NonFiniteLogits
from afina.models import sampling
from afina.models.sampling import Sampler, Sampling, choose, likelihoods

VOCABULARY, DRAWS = 40, 4000
PROMPT, ANSWER = [3, 4, 5], [7, 7, 9, 3]
HOST = torch.device("cpu")


def drawn(how: Sampling, logits_V: Tensor, prompt=(), answer=(), stops=(), draws: int = DRAWS) -> Tensor:
    """The tokens of so many sequences that differ in their seeds alone."""
    samplers = [Sampler(replace(how, seed=i), HOST, stops, prompt, answer) for i in range(draws)]
    return choose(samplers, logits_V.expand(draws, -1)).tokens_B


def one(how: Sampling, logits_V: Tensor, prompt=(), answer=(), stops=()) -> int:
    (token,) = choose([Sampler(how, HOST, stops, prompt, answer)], logits_V[None]).read()
    if isinstance(token, Exception):
        raise token
    return token


def logits_of(seed: int = 0) -> Tensor:
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2


def theirs(logits_V: Tensor, how: dict) -> Tensor:
    """The probabilities that transformers' processors leave, in its order."""
    import transformers as t

    ids = torch.tensor([PROMPT + ANSWER])
    scores = logits_V[None].clone()
    if "logit_bias" in how:
        scores = t.SequenceBiasLogitsProcessor([[[token], bias] for token, bias in how["logit_bias"]])(ids, scores)
    if "repetition_penalty" in how:
        scores = t.RepetitionPenaltyLogitsProcessor(how["repetition_penalty"])(ids, scores)
    if "min_tokens" in how:
        scores = t.MinNewTokensLengthLogitsProcessor(len(PROMPT), how["min_tokens"], [0, 1], device="cpu")(ids, scores)
    scores = t.TemperatureLogitsWarper(how["temperature"])(ids, scores)
    if "top_k" in how:
        scores = t.TopKLogitsWarper(how["top_k"])(ids, scores)
    if "top_p" in how:
        scores = t.TopPLogitsWarper(how["top_p"])(ids, scores)
    if "min_p" in how:
        scores = t.MinPLogitsWarper(how["min_p"])(ids, scores)
    return scores[0].softmax(0)


@pytest.mark.parametrize(
    "how",
    [
        {"min_p": 0.1},
        {"top_k": 12, "top_p": 0.7},
        {"top_k": 9, "min_p": 0.2, "top_p": 0.95},
        {"logit_bias": ((5, 4.0), (11, -100.0), (30, 2.5))},
        {"repetition_penalty": 1.7, "logit_bias": ((7, 3.0),), "top_p": 0.9},
        {"min_tokens": 9, "min_p": 0.02},
        {"min_tokens": 4},
    ],
    ids=str,
)
def test_tokens_come_as_often_as_with_transformers(how: dict) -> None:
    for temperature in (0.7, 1.4):
        expected = theirs(logits_of(), how | {"temperature": temperature})
        tokens = drawn(Sampling(**how, temperature=temperature), logits_of(), PROMPT, ANSWER, [0, 1])
        found = torch.bincount(tokens, minlength=VOCABULARY) / DRAWS
        assert (found[expected == 0] == 0).all()
        assert (found - expected).abs().max() < 0.035


@pytest.mark.parametrize(("frequency", "presence"), [(0.5, 0.0), (0.0, 1.5), (0.7, -0.4), (-1.0, 2.0)])
def test_penalties_are_openais(frequency: float, presence: float) -> None:
    """mu[j] − c[j] · frequency − (c[j] > 0) · presence, of what the answer holds and not the prompt."""
    expected = logits_of()
    for token, count in ((7, 2), (9, 1), (3, 1)):
        expected[token] -= count * frequency + presence
    how = Sampling(frequency_penalty=frequency, presence_penalty=presence)
    tokens = drawn(replace(how, temperature=1.0), logits_of(), PROMPT, ANSWER)
    found = torch.bincount(tokens, minlength=VOCABULARY) / DRAWS
    assert (found - expected.softmax(0)).abs().max() < 0.035
    assert one(how, logits_of(), PROMPT, ANSWER) == int(expected.argmax())


def test_what_is_chosen_from_is_the_same_however_many_tokens_there_are() -> None:
    """Beyond the first few hundred the tokens are sorted."""
    flat = torch.linspace(0, 0.01, 3000)
    tokens = set(drawn(Sampling(temperature=1.0, top_p=0.9), flat, draws=500).tolist())
    assert min(tokens) >= 290  # of 3000 tokens that are nearly alike 0.9 are kept, the likeliest
    assert len(tokens) > 300


class Allowing:
    """A constraint of so many tokens."""

    def __init__(self, allowed: list[list[int]], length: int = VOCABULARY) -> None:
        self.steps, self.length = allowed, length

    def allowed(self, token_ids) -> Tensor:
        mask = torch.zeros(self.length, dtype=torch.bool)
        mask[self.steps[len(token_ids)]] = True
        return mask


def test_a_constraint_leaves_what_it_allows() -> None:
    constraint = Allowing([[3, 8], [5], []], length=10)  # shorter than the vocabulary
    for how in (Sampling(constraint=constraint), Sampling(constraint=constraint, temperature=1.3, seed=4)):
        assert not how.is_argmax
        assert one(how, logits_of(), PROMPT) in (3, 8)
        assert one(how, logits_of(), PROMPT, [3]) == 5
        with pytest.raises(AfinaError, match="no token may come next"):
            one(how, logits_of(), PROMPT, [3, 5])


def test_the_logits_stay_as_they_were() -> None:
    logits = logits_of()
    how = Sampling(repetition_penalty=1.5, logit_bias=((3, 9.0),), frequency_penalty=1.0, min_tokens=9)
    assert one(how, logits, PROMPT, ANSWER, [7]) != 7
    assert torch.equal(logits, logits_of())


@pytest.mark.parametrize(
    "how",
    [{"temperature": 1e-300}, {"temperature": 1e-45}, {"temperature": 1.0, "top_p": 1e-300}],
    ids=str,
)
def test_the_least_of_a_range_takes_the_likeliest(how: dict) -> None:
    assert set(drawn(Sampling(**how), logits_of(), PROMPT, ANSWER, draws=20).tolist()) == {int(logits_of().argmax())}


@pytest.mark.parametrize("penalty", [1e-308, 1e-45, 1e38])
def test_any_penalty_leaves_tokens_to_draw_from(penalty: float) -> None:
    assert 0 <= one(Sampling(temperature=1.0, repetition_penalty=penalty), logits_of(), PROMPT, ANSWER) < VOCABULARY


def test_likelihoods_are_of_the_raw_distribution() -> None:
    logits = torch.stack([logits_of(0), logits_of(1)])
    expected = logits.double().log_softmax(-1)
    for row, found in enumerate(likelihoods(logits, [4, 8], 5)):
        assert found.id == (4, 8)[row]
        assert found.logprob == pytest.approx(float(expected[row, found.id]), abs=1e-5)
        assert [token for token, _ in found.top] == expected[row].topk(5).indices.tolist()
        assert [p for _, p in found.top] == pytest.approx(expected[row].topk(5).values.tolist(), abs=1e-5)
    assert [each.top for each in likelihoods(logits, [4, 8], 0)] == [(), ()]


class RowByRow:
    """One sequence's tokens, with a wait for each and torch's own drawing: what a batch must give."""

    def __init__(self, how: Sampling, stops: list[int]) -> None:
        self.how, self.stops = how, stops
        self.generator = torch.Generator().manual_seed(how.seed) if how.temperature else None

    def choose(self, logits_V: Tensor, prompt: list[int], answer: list[int]) -> int:
        how, scores = self.how, logits_V.float().clone()
        for token, bias in how.logit_bias:
            scores[token] += bias
        if how.repetition_penalty != 1:
            seen = torch.tensor(sorted({*prompt, *answer}))
            old = scores[seen]
            by = how.repetition_penalty
            scores[seen] = torch.where(old < 0, old * by, old / by).nan_to_num(neginf=-torch.inf)
        if how.frequency_penalty or how.presence_penalty:
            for token, n in Counter(answer).items():
                scores[token] -= how.presence_penalty + how.frequency_penalty * n
        if len(answer) < how.min_tokens:
            scores[self.stops] = -torch.inf
        if self.generator is None:
            return int(scores.argmax())
        scores = (scores - scores.max()) / how.temperature
        ids = torch.arange(len(scores))
        if how.top_k:
            scores, ids = scores.topk(how.top_k)
        p = scores.softmax(0)
        if how.top_p < 1:
            if not how.top_k:
                most = min(512, len(p))
                p, ids = p.topk(most) if p.topk(most).values.sum() >= how.top_p else p.sort(descending=True)
            p[1:][(p.cumsum(0) - p)[1:] >= how.top_p] = 0
        p[p < how.min_p * p.max()] = 0
        return int(ids[torch.multinomial(p, 1, generator=self.generator)])


KINDS = [
    Sampling(),
    Sampling(temperature=0.8),
    Sampling(temperature=1.3, top_p=0.9),
    Sampling(temperature=2.5, top_p=0.99),
    Sampling(temperature=1.1, top_p=0.2, min_p=0.01),
    Sampling(temperature=1.0, top_k=5),
    Sampling(temperature=0.7, top_k=5, top_p=0.8),
    Sampling(temperature=1.2, min_p=0.05),
    Sampling(repetition_penalty=1.4),
    Sampling(frequency_penalty=0.3, presence_penalty=0.2, temperature=0.9),
    Sampling(frequency_penalty=-0.4, repetition_penalty=1.2, temperature=1.0, top_p=0.7),
    Sampling(logit_bias=((5, 3.0), (9, 0.25), (5, 1.0)), temperature=0.5),
    Sampling(min_tokens=8, temperature=1.0, top_k=9),
]


@pytest.mark.parametrize("vocabulary", [VOCABULARY, 3001])
def test_a_batch_gets_what_its_rows_get_one_by_one(vocabulary: int) -> None:
    """Bit for bit: many settings in one batch, over a hundred steps, while rows come and go."""
    random = torch.Generator().manual_seed(0)
    rows = [replace(how, seed=100 * n + i) for n in range(3) for i, how in enumerate(KINDS)]
    prompts = [[(7 * i + j) % vocabulary for j in range(3 + i % 5)] for i in range(len(rows))]
    answers: list[list[int]] = [[] for _ in rows]
    singles = [RowByRow(how, [0, 1]) for how in rows]
    samplers = [Sampler(how, HOST, [0, 1], prompts[i]) for i, how in enumerate(rows)]
    for step in range(100):
        present = [i for i in range(len(rows)) if (i + step) % 7]
        logits = torch.randn(len(present), vocabulary, generator=random).to(torch.bfloat16) * (0.2 + step % 5)
        tokens = choose([samplers[i] for i in present], logits).read()
        for i, row, token in zip(present, logits, tokens, strict=True):
            assert token == singles[i].choose(row, prompts[i], answers[i]), (step, rows[i])
            answers[i].append(token)


def test_choosing_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would make the host wait for a card: none of it in a batch of all kinds, before the tokens are read."""
    samplers = [Sampler(how, HOST, [0, 1], PROMPT) for how in KINDS for _ in range(2)]
    logits = torch.randn(len(samplers), 3001, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(sampling, "overlaps", lambda _: True)
    monkeypatch.setattr(sampling, "later", lambda values: lambda: values)
    waits: list[str] = []
    for name in ("item", "tolist", "nonzero", "__bool__", "__int__", "__float__", "cpu", "numpy", "__index__"):
        real = getattr(Tensor, name)
        monkeypatch.setattr(Tensor, name, lambda *of, real=real, name=name: waits.append(name) or real(*of))
    for _ in range(3):
        choice = choose(samplers, logits)
    assert waits == []
    assert len(choice.read()) == len(samplers)
    assert waits == ["tolist"]


def test_each_row_has_its_own_fault() -> None:
    logits = torch.stack([logits_of(i) for i in range(4)])
    logits[1, 3] = float("nan")
    banned = Sampling(logit_bias=tuple((i, -torch.inf) for i in range(VOCABULARY)), temperature=1.0)
    rows = [Sampling(), Sampling(temperature=1.0), banned, Sampling(temperature=1.0, seed=2)]
    found = choose([Sampler(how, HOST) for how in rows], logits)
    assert [type(token) for token in found.read()] == [int, NonFiniteLogits, AfinaError, int]
    assert all(0 <= token < VOCABULARY for token in found.tokens_B.tolist())  # what a card may go on with meanwhile
