"""How the next token is chosen, against the processors of transformers."""

import pytest
import torch
from torch import Tensor

from afina.core.errors import AfinaError
from afina.models.sampling import Sampler, Sampling, likelihoods

VOCABULARY, DRAWS = 40, 4000
PROMPT, ANSWER = [3, 4, 5], [7, 7, 9, 3]


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
        sampler = Sampler(Sampling(**how, temperature=temperature, seed=3), torch.device("cpu"), [0, 1])
        drawn = torch.tensor([sampler.choose(logits_of(), PROMPT, ANSWER) for _ in range(DRAWS)])
        found = torch.bincount(drawn, minlength=VOCABULARY) / DRAWS
        assert (found[expected == 0] == 0).all()
        assert (found - expected).abs().max() < 0.035


@pytest.mark.parametrize(("frequency", "presence"), [(0.5, 0.0), (0.0, 1.5), (0.7, -0.4), (-1.0, 2.0)])
def test_penalties_are_openais(frequency: float, presence: float) -> None:
    """mu[j] − c[j] · frequency − (c[j] > 0) · presence, of what the answer holds and not the prompt."""
    expected = logits_of()
    for token, count in ((7, 2), (9, 1), (3, 1)):
        expected[token] -= count * frequency + presence
    how = Sampling(temperature=1.0, frequency_penalty=frequency, presence_penalty=presence, seed=1)
    sampler = Sampler(how, torch.device("cpu"))
    drawn = torch.tensor([sampler.choose(logits_of(), PROMPT, ANSWER) for _ in range(DRAWS)])
    found = torch.bincount(drawn, minlength=VOCABULARY) / DRAWS
    assert (found - expected.softmax(0)).abs().max() < 0.035
    greedy = Sampler(Sampling(frequency_penalty=frequency, presence_penalty=presence), torch.device("cpu"))
    assert greedy.choose(logits_of(), PROMPT, ANSWER) == int(expected.argmax())


def test_what_is_chosen_from_is_the_same_however_many_tokens_there_are() -> None:
    """Beyond the first few hundred the tokens are sorted."""
    flat = torch.linspace(0, 0.01, 3000)
    sampler = Sampler(Sampling(temperature=1.0, top_p=0.9, seed=2), torch.device("cpu"))
    drawn = {sampler.choose(flat, [], []) for _ in range(500)}
    assert min(drawn) >= 290  # of 3000 tokens that are nearly alike 0.9 are kept, the likeliest
    assert len(drawn) > 300


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
        sampler = Sampler(how, torch.device("cpu"))
        assert not how.is_argmax
        assert sampler.choose(logits_of(), PROMPT, []) in (3, 8)
        assert sampler.choose(logits_of(), PROMPT, [3]) == 5
        with pytest.raises(AfinaError, match="no token may come next"):
            sampler.choose(logits_of(), PROMPT, [3, 5])


def test_the_logits_stay_as_they_were() -> None:
    logits = logits_of()
    how = Sampling(repetition_penalty=1.5, logit_bias=((3, 9.0),), frequency_penalty=1.0, min_tokens=9)
    assert Sampler(how, torch.device("cpu"), [7]).choose(logits, PROMPT, ANSWER) != 7
    assert torch.equal(logits, logits_of())


@pytest.mark.parametrize(
    "how",
    [{"temperature": 1e-300}, {"temperature": 1e-45}, {"temperature": 1.0, "top_p": 1e-300}],
    ids=str,
)
def test_the_least_of_a_range_takes_the_likeliest(how: dict) -> None:
    sampler = Sampler(Sampling(**how, seed=5), torch.device("cpu"))
    assert {sampler.choose(logits_of(), PROMPT, ANSWER) for _ in range(20)} == {int(logits_of().argmax())}


@pytest.mark.parametrize("penalty", [1e-308, 1e-45, 1e38])
def test_any_penalty_leaves_tokens_to_draw_from(penalty: float) -> None:
    sampler = Sampler(Sampling(temperature=1.0, repetition_penalty=penalty), torch.device("cpu"))
    assert 0 <= sampler.choose(logits_of(), PROMPT, ANSWER) < VOCABULARY


def test_likelihoods_are_of_the_raw_distribution() -> None:
    logits = torch.stack([logits_of(0), logits_of(1)])
    expected = logits.double().log_softmax(-1)
    for row, found in enumerate(likelihoods(logits, [4, 8], 5)):
        assert found.id == (4, 8)[row]
        assert found.logprob == pytest.approx(float(expected[row, found.id]), abs=1e-5)
        assert [token for token, _ in found.top] == expected[row].topk(5).indices.tolist()
        assert [p for _, p in found.top] == pytest.approx(expected[row].topk(5).values.tolist(), abs=1e-5)
    assert [each.top for each in likelihoods(logits, [4, 8], 0)] == [(), ()]
