"""The batcher: late requests, more requests than slots, cancelled ones; each is answered as it would be alone."""

import pytest
import torch
from conftest import tiny_module
from test_generation import WORDS

from afina.core.errors import AdapterError, NonFiniteLogits
from afina.models import Base, generate
from afina.models.batcher import Batcher, Request
from afina.models.causal import TransformersModel
from afina.models.sampling import GREEDY, Sampling, likeliest

HOW = [GREEDY, Sampling(temperature=1.5, seed=3), Sampling(temperature=1.2, top_p=0.8, repetition_penalty=1.3, seed=4)]


@pytest.fixture(params=["ours", "transformers"])
def base(request: pytest.FixtureRequest, tiny: Base) -> Base:
    if request.param == "transformers":
        return type(tiny)(**{**vars(tiny), "model": TransformersModel(tiny_module())})
    return tiny


@pytest.fixture
def prompts(base: Base) -> list[list[int]]:
    shared = "these instructions stand before every question of the test: "  # long enough to be read once
    texts = [shared + text for text in WORDS] + ["and one without"]
    return [base.tokenizer.encode(text) for text in texts]


def alone(base: Base, prompts: list[list[int]], new: int) -> list:
    """What each prompt gives by itself, with the sampling that is its turn."""
    return [generate(base, [prompt], new, HOW[i % 3])[0] for i, prompt in enumerate(prompts)]


def test_requests_that_come_in_the_middle_get_the_answers_they_would_get_alone(
    base: Base, prompts: list[list[int]]
) -> None:
    batcher = Batcher(base.model, base.tokenizer, max_batch_size=4)
    requests: list[Request] = []
    streamed: dict[int, list[int]] = {}
    largest = 0
    arrivals = iter((2, 0, 0, 1, 6))  # prompts before each step
    while len(requests) < len(prompts) or batcher.busy:
        for prompt in prompts[len(requests) :][: next(arrivals)] if len(requests) < len(prompts) else []:
            requests.append(batcher.submit(prompt, 12, HOW[len(requests) % 3]))
        tokens = batcher.step()
        largest = max(largest, len(tokens))
        for request, token in tokens:
            streamed.setdefault(requests.index(request), []).append(token)
    assert largest == 4  # as many as there is space for, and the others waited
    assert [batcher.answer(request) for request in requests] == alone(base, prompts, 12)
    for i, request in enumerate(requests):
        assert request.finish_reason in ("stop", "length")
        ended = streamed[i][-1] in base.tokenizer.stop_ids
        assert request.token_ids == (streamed[i][:-1] if ended else streamed[i])
    assert batcher.step() == []


def test_a_cancelled_request_leaves_and_the_others_do_not_notice(base: Base, prompts: list[list[int]]) -> None:
    batcher = Batcher(base.model, base.tokenizer, max_batch_size=3)
    requests = [batcher.submit(prompt, 12, HOW[i % 3]) for i, prompt in enumerate(prompts[:6])]
    for _ in range(3):
        batcher.step()
    batcher.cancel(requests[1])  # active
    batcher.cancel(requests[5])  # waiting
    written = list(requests[1].token_ids)
    assert len(written) == 3
    while batcher.busy:
        assert not {requests[1], requests[5]} & {request for request, _ in batcher.step()}
    assert requests[1].token_ids == written
    assert requests[5].token_ids == []
    expected = alone(base, prompts[:6], 12)
    for i in (0, 2, 3, 4):
        assert batcher.answer(requests[i]) == expected[i]
    batcher.cancel(requests[0])  # it has finished already
    assert [request.finish_reason for request in (requests[1], requests[5])] == ["cancelled"] * 2
    assert requests[0].finish_reason != "cancelled"


def test_slots_and_their_length_grow(tiny: Base, prompts: list[list[int]]) -> None:
    batcher = Batcher(tiny.model, tiny.tokenizer, max_batch_size=8)
    short = tiny.tokenizer.encode("x")
    requests = [batcher.submit(short, 30)]
    batcher.step()
    assert batcher._sequences._cache.slots == 1
    requests += [batcher.submit(prompt, 30) for prompt in prompts]
    while batcher.busy:
        batcher.step()
    assert [batcher.answer(request) for request in requests] == [generate(tiny, [p], 30)[0] for p in [short, *prompts]]
    assert batcher._sequences is None  # nothing is held while nothing is asked


def test_only_the_adapter_in_place_is_served(tiny: Base) -> None:
    batcher = Batcher(tiny.model, tiny.tokenizer, adapter="tickets")
    assert batcher.submit([5, 6], 2, adapter="tickets").adapter == "tickets"
    assert batcher.submit([5, 6], 2).adapter is None
    with pytest.raises(AdapterError, match="'other' is not loaded: only 'tickets' is"):
        batcher.submit([5, 6], 2, adapter="other")
    with pytest.raises(AdapterError, match="has none with a name"):
        Batcher(tiny.model, tiny.tokenizer).submit([5, 6], 2, adapter="other")
    while batcher.busy:
        batcher.step()


@pytest.mark.parametrize("how", [GREEDY, *HOW, Sampling(repetition_penalty=1.2)])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_no_numbers_are_no_answer(
    base: Base, prompts: list[list[int]], how: Sampling, value: float
) -> None:
    weight = next(p for name, p in base.model.module.named_parameters() if name.endswith("model.norm.weight"))
    before = weight.detach().clone()
    weight.data.fill_(value)
    try:
        with pytest.raises(NonFiniteLogits, match="NaN or infinite"):
            generate(base, prompts[:3], 4, how)
    finally:
        weight.data.copy_(before)


def test_a_token_that_can_never_come_is_no_fault() -> None:
    assert likeliest(torch.tensor([[0.0, -float("inf"), 1.0], [3.0, 2.0, -float("inf")]])) == [2, 0]
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NonFiniteLogits):
            likeliest(torch.tensor([[0.0, 1.0], [0.0, bad]]))
    with pytest.raises(NonFiniteLogits):
        likeliest(torch.full((1, 3), -float("inf")))


def test_the_model_is_as_it_was_after_an_error(tiny: Base) -> None:
    tiny.model.module.train()

    def fail(done: int, total: int) -> None:
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        generate(tiny, [[5, 6]], 2, on_progress=fail)
    assert tiny.model.module.training
    assert not torch.is_inference_mode_enabled()
