"""The batcher: late requests, more requests than slots, cancelled ones; each is answered as it would be alone."""

import pytest
import torch
from adapters_made import row_adapter
from conftest import tiny_module
from test_generation import WORDS

from afina.core.errors import NonFiniteLogits
from afina.models import Base, generate
from afina.models.batcher import Batcher, Request
from afina.models.causal import TransformersModel
from afina.models.sampling import GREEDY, Choice, Sampling, likeliest

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
        changed = batcher.step()
        largest = max(largest, len(batcher.active))
        for request in changed:
            token = request.stop_reason if len(request.token_ids) < request.generated else request.token_ids[-1]
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
        assert not {requests[1], requests[5]} & {*batcher.step()}
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


def test_each_request_has_its_adapters_answer(tiny: Base, prompts: list[list[int]]) -> None:
    """Complaints 5, 8, 14: rows of two adapters and of the base in one batch, that of an adapter given up in between,
    each as alone."""
    own = [*(row_adapter(tiny.model.module, name, scaling=0.5, size=0.5) for name in "ab"), None]

    def ask(batcher: Batcher, i: int) -> Request:
        return batcher.submit(prompts[i], 10, HOW[i % 3], own[i % 2 if i % 5 else 2])

    batcher = Batcher(tiny.model, tiny.tokenizer, max_batch_size=6)
    requests = [ask(batcher, i) for i in range(len(prompts))]
    for _ in range(3):
        batcher.step()
    batcher.cancel(requests[1])
    while batcher.busy:
        batcher.step()
    answers = set()
    for i, request in enumerate(requests):
        if i != 1:
            single = Batcher(tiny.model, tiny.tokenizer, max_batch_size=1)
            alone = ask(single, i)
            while single.busy:
                single.step()
            assert batcher.answer(request) == single.answer(alone)
            answers.add(batcher.answer(request).text)
    assert len(answers) > 3


def test_a_long_prompt_is_read_in_parts_while_others_go_on(tiny: Base, prompts: list[list[int]]) -> None:
    """The others get a token in each step; a prompt that is given up on the way is not read to its end."""
    batcher = Batcher(tiny.model, tiny.tokenizer, prefill_tokens=32)
    first = batcher.submit(prompts[0], 40)
    while not first.is_read:
        batcher.step()
    long = [5 + i % 200 for i in range(200)]
    second, given_up = batcher.submit(long, 5), batcher.submit(long[::-1], 5)
    steps = 0
    while not second.is_read:
        before = len(first.token_ids)
        batcher.step()
        steps += 1
        assert len(first.token_ids) == before + 1
    assert steps == 7
    batcher.step()
    batcher.cancel(given_up)
    assert not given_up.is_read
    steps = 0
    while batcher.busy:
        batcher.step()
        steps += 1
    assert steps <= 40
    assert given_up.finish_reason == "cancelled"
    assert batcher.answer(second) == generate(tiny, [long], 5)[0]
    assert batcher.answer(first) == generate(tiny, [prompts[0]], 40)[0]


def test_a_fault_is_its_own_requests_alone(base: Base, prompts: list[list[int]]) -> None:
    class Raising:
        def allowed(self, token_ids):
            if len(token_ids) == 3:
                raise OSError("what a library raises")
            return torch.ones(259, dtype=torch.bool)

    batcher = Batcher(base.model, base.tokenizer)
    good = [batcher.submit(prompt, 12) for prompt in prompts[:3]]
    bad = batcher.submit(prompts[3], 12, Sampling(constraint=Raising()))
    while batcher.busy:
        batcher.step()
    assert (bad.finish_reason, str(bad.fault), len(bad.token_ids)) == ("fault", "what a library raises", 3)
    with pytest.raises(OSError, match="what a library raises"):
        batcher.answer(bad)
    for request, prompt in zip(good, prompts, strict=False):
        assert batcher.answer(request) == generate(base, [prompt], 12)[0]


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device that computes while the host goes on."""
    monkeypatch.setattr("afina.models.batcher.overlaps", lambda _: True)


def test_tokens_that_are_read_a_step_late_are_the_same(
    base: Base, prompts: list[list[int]], request: pytest.FixtureRequest
) -> None:
    """Answers that stop by themselves, at a string, at their limit, of no token, with a constraint, and cancelled."""
    text = generate(base, [prompts[2]], 12)[0].text
    kinds = [
        (12, GREEDY), (1, GREEDY), (12, Sampling(stop=(text[2:4],))), (0, GREEDY), (7, HOW[1]), (12, HOW[2]),
        (9, Sampling(min_tokens=9, frequency_penalty=0.5)), (2, HOW[1]),
    ]  # fmt: skip
    asked = [(prompts[i % len(prompts)], *kinds[i % len(kinds)]) for i in range(2 * len(kinds))]

    told: list[torch.Tensor] = []

    def all_of(more: list) -> list:
        batcher = Batcher(base.model, base.tokenizer, max_batch_size=5)
        found = [batcher.submit(*each, top=2 if i % 3 else None) for i, each in enumerate([*asked, *more])]
        seen = dict.fromkeys(found, 0)
        while batcher.busy:
            for each in batcher.step():
                seen[each] += 1
        assert all(each.generated == seen[each] for each in found if each.max_new_tokens and each.fault is None)
        assert batcher._unread == []
        likely = [each for request in found for each in request.likelihoods]
        told.append(torch.tensor([each.logprob for each in likely]))
        return [
            (each.token_ids, each.finish_reason, each.stop_reason, each.text.text, each.generated, *ids)
            for each in found
            for ids in [[(one.id, len(one.top)) for one in each.likelihoods]]
        ]

    class Even:
        def allowed(self, token_ids):
            return torch.arange(259) % 2 == 0

    constrained = [(prompts[1], 8, Sampling(constraint=Even())), (prompts[3], 5, GREEDY)]
    now = [all_of([]), all_of(constrained)]
    request.getfixturevalue("behind")
    assert [all_of([]), all_of(constrained)] == now
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(told[:2], told[2:], strict=True))  # in other company


@pytest.mark.usefixtures("behind")
def test_the_next_step_is_asked_for_before_the_last_is_read(
    tiny: Base, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    decode, read = type(tiny.model.start(1, 1)).decode, Choice.read
    monkeypatch.setattr(
        "afina.engine.sequences.DecoderSequences.decode", lambda *of: order.append("ask") or decode(*of)
    )
    monkeypatch.setattr(Choice, "read", lambda *of: order.append("read") or read(*of))
    batcher = Batcher(tiny.model, tiny.tokenizer)
    request = batcher.submit(prompts[0], 4, Sampling(ignore_eos=True))
    while batcher.busy:
        batcher.step()
    assert order == ["ask", "read", "ask", "read", "ask", "read", "read"]
    assert len(request.token_ids) == 4
    kept = Batcher(tiny.model, tiny.tokenizer, kept=1 << 20)  # what is held of a sequence is known though read late
    first = kept.submit(prompts[0], 6, Sampling(ignore_eos=True))
    while kept.busy:
        kept.step()
    again = kept.submit([*prompts[0], *first.token_ids, 5], 1)
    while kept.busy:
        kept.step()
    assert again.cached >= len(prompts[0]) + 5


@pytest.mark.usefixtures("behind")
def test_a_request_that_is_given_up_or_faulty_gets_no_token_that_was_chosen_before(
    tiny: Base, prompts: list[list[int]]
) -> None:
    batcher = Batcher(tiny.model, tiny.tokenizer)
    one, other = (batcher.submit(prompt, 12, Sampling(ignore_eos=True)) for prompt in prompts[:2])
    for _ in range(3):
        batcher.step()
    batcher.cancel(one)
    assert (len(one.token_ids), one.chosen) == (2, 3)
    while batcher.busy:
        assert one not in batcher.step()
    assert len(one.token_ids) == 2
    assert batcher.answer(other) == generate(tiny, [prompts[1]], 12, Sampling(ignore_eos=True))[0]
    batcher.submit(prompts[0], 5)
    batcher.step()
    assert batcher.drop_active()
    assert not batcher.busy


def test_likelihoods_are_transformers(base: Base, prompts: list[list[int]]) -> None:
    """Of the answer's tokens, of the prompt's, and of a prompt without an answer, in parts."""
    reference = tiny_module()
    batcher = Batcher(base.model, base.tokenizer, prefill_tokens=16)
    request = batcher.submit(prompts[0], 6, Sampling(temperature=1.3, seed=3), top=4)
    echoed = Request(prompts[1], 0, GREEDY, None, 2)
    both = Request(prompts[2], 4, GREEDY, None, 0)
    for each in (echoed, both):
        each.echo = True
        batcher.add(each)
    while batcher.busy:
        batcher.step()

    def theirs(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return reference(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)

    log_p = theirs([*request.prompt_ids, *request.token_ids])[len(request.prompt_ids) - 1 :]
    assert [each.id for each in request.likelihoods] == request.token_ids
    for at, each in enumerate(request.likelihoods):
        assert each.logprob == pytest.approx(float(log_p[at, each.id]), abs=1e-4)
        assert [token for token, _ in each.top] == log_p[at].topk(4).indices.tolist()
    for each in (echoed, both):
        log_p = theirs(each.prompt_ids)
        assert (each.prompt_likelihoods[0].id, each.prompt_likelihoods[0].logprob) == (each.prompt_ids[0], None)
        found = [likely.logprob for likely in each.prompt_likelihoods[1:]]
        expected = log_p[:-1].gather(1, torch.tensor(each.prompt_ids[1:])[:, None])[:, 0]
        assert found == pytest.approx(expected.tolist(), abs=1e-4)
    assert (echoed.finish_reason, echoed.token_ids) == ("length", [])
    assert len(echoed.prompt_likelihoods[1].top) == 2
    assert batcher.answer(both) == generate(base, [prompts[2]], 4)[0]


def test_least_tokens_and_ignored_ends(tiny: Base, prompts: list[list[int]]) -> None:
    (stop, *_) = tiny.tokenizer.stop_ids
    ends = Sampling(logit_bias=((stop, 100.0),))
    for how, tokens, reason in (
        (ends, 0, "stop"),
        (Sampling(logit_bias=ends.logit_bias, min_tokens=4), 4, "stop"),
        (Sampling(logit_bias=ends.logit_bias, ignore_eos=True), 9, "length"),
    ):
        batcher = Batcher(tiny.model, tiny.tokenizer)
        request = batcher.submit(prompts[0], 9, how)
        while batcher.busy:
            batcher.step()
        assert (len(request.token_ids), request.finish_reason) == (tokens, reason)
        assert request.generated == tokens + (reason == "stop")
        assert request.stop_reason == (stop if reason == "stop" else None)


@pytest.mark.parametrize("most", [90, 300, 2000])
def test_memory_stays_within_what_is_allowed(tiny: Base, prompts: list[list[int]], most: int) -> None:
    """Whatever is asked in whichever order, long requests after many short ones too."""
    batcher = Batcher(tiny.model, tiny.tokenizer, max_batch_size=8, kept=0, max_tokens=most)
    a_token = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, their width, bytes
    asked = [(prompts[i % len(prompts)][: 10 + 9 * i], 5 + i % 3) for i in range(10)]
    requests = [batcher.submit(*each) for each in asked]
    largest = 0
    while batcher.busy:
        batcher.step()
        assert batcher.kv_bytes <= most * a_token
        largest = max(largest, len(batcher.active))
    assert (largest >= 6) == (most == 2000)
    for request, each in zip(requests, asked, strict=True):
        assert batcher.answer(request) == generate(tiny, [each[0]], each[1])[0]


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
