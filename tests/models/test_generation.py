"""Generation against transformers' own: greedy, sampled, penalised, stopped."""

import copy

import pytest
import torch
from conftest import tiny_module

from afina.engine.decoder import Decoder
from afina.lora import LoraConfig, inject, merge
from afina.models import generate
from afina.models.batcher import Batcher
from afina.models.sampling import Sampler, Sampling, choose

WORDS = ("hello", "a much longer prompt than that", "x", "once upon a time", "2 + 2", "why?", "Lisboa", "um dois três")


def theirs(prompt: list[int], new: int, **arguments) -> list[int]:
    ids = torch.tensor([prompt])
    out = tiny_module().generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0, **arguments
    )
    tokens = out[0, len(prompt) :].tolist()
    return tokens[: tokens.index(2)] if 2 in tokens else tokens


@pytest.fixture
def prompts(tiny) -> list[list[int]]:
    return [tiny.tokenizer.encode(text) for text in WORDS]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_greedy_is_transformers_whatever_the_batch(tiny, prompts, batch: int) -> None:
    seen: list[tuple[int, int]] = []
    answers = generate(tiny, prompts, 20, batch_size=batch, on_progress=lambda *at: seen.append(at))
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = theirs(prompt, 20)
        assert answer.text == tiny.tokenizer.decode(expected).strip()
        assert answer.tokens == len(expected)
        assert answer.stopped == (len(expected) < 20)
    assert seen[-1] == (8, 8)
    assert generate(tiny, [], 20) == []


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens were read in each pass over prompts."""
    passes: list[int] = []
    forward = Decoder.forward

    def counted(self, ids_T, segments, *others):
        if segments.longest > 1:
            passes.append(len(ids_T))
        return forward(self, ids_T, segments, *others)

    monkeypatch.setattr(Decoder, "forward", counted)
    return passes


def test_what_prompts_share_is_read_once(tiny, read: list[int]) -> None:
    """A tree: what all begin with, and what some of them go on with."""
    trunk, branch = (
        "the instructions that come before each of these questions: ",
        "and this is said before half of them: ",
    )
    texts = [trunk + (branch if i % 2 else "") + word for i, word in enumerate(WORDS)]
    prompts = [tiny.tokenizer.encode(text) for text in [*texts, texts[0], trunk, "nothing of it"]]
    answers = generate(tiny, prompts, 15)
    least = sum(len(tiny.tokenizer.encode(text)) for text in (trunk, branch, *WORDS, "nothing of it"))
    assert least - 20 <= sum(read) <= least + 60  # trunks of a few tokens are read again
    assert sum(read) < sum(map(len, prompts)) / 2
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.text == tiny.tokenizer.decode(theirs(prompt, 15)).strip()
    read.clear()
    for prompt, answer in zip(prompts, generate(tiny, prompts, 15, batch_size=3), strict=True):
        assert answer.text == tiny.tokenizer.decode(theirs(prompt, 15)).strip()
    assert sum(read) < sum(map(len, prompts)) / 2  # from slots of those that came before


def test_a_later_prompt_begins_where_an_earlier_one_is_held(tiny, read: list[int]) -> None:
    batcher = Batcher(tiny.model, tiny.tokenizer, max_batch_size=3, kept=0)
    first = tiny.tokenizer.encode("a conversation that goes on and on, with one question after the other")
    others = [tiny.tokenizer.encode(text) for text in ("something else entirely, of some length", "and a third one")]

    def ask(*prompts: list[int]) -> list[list[int]]:
        read.clear()
        with torch.no_grad():
            requests = [batcher.submit(prompt, 8) for prompt in prompts]
            while batcher.busy:
                batcher.step()
        for request in requests:
            assert request.token_ids == theirs(request.prompt_ids, 8)
        return [request.token_ids for request in requests]

    tiny.model.module.eval()
    (answer,) = ask(first)
    assert sum(read) == len(first)
    turn = [*first, *answer, *tiny.tokenizer.encode(" and then?")]
    ask(turn)
    assert sum(read) <= len(turn) - len(first) - len(answer) + 1  # its answer is held, too
    ask(turn, [*turn[:-3], 7, 8, 9], first)
    assert sum(read) <= 12  # in the slot itself, and in copies of it
    ask(*others, first)
    ask(others[0])
    assert read == []  # but for its last token
    ask(*([40 + i] * 20 for i in range(3)))  # what was held is needed for others now
    ask(first)
    assert sum(read) == len(first)
    batcher.shrink()  # of which no byte is kept
    assert batcher._sequences is None


def test_repetition_penalty_is_transformers(tiny, prompts) -> None:
    for prompt, answer in zip(prompts, generate(tiny, prompts, 15, Sampling(repetition_penalty=1.5)), strict=True):
        assert answer.text == tiny.tokenizer.decode(theirs(prompt, 15, repetition_penalty=1.5)).strip()


def test_the_same_seed_gives_the_same_answer_in_any_company(tiny, prompts) -> None:
    how = [Sampling(temperature=1.5, seed=i) for i in range(8)]
    together = generate(tiny, prompts, 12, how, batch_size=8)
    assert together == generate(tiny, prompts, 12, how, batch_size=3)
    assert together[5] == generate(tiny, [prompts[5]], 12, how[5])[0]
    assert together != generate(tiny, prompts, 12, [Sampling(temperature=1.5, seed=i + 9) for i in range(8)])
    assert generate(tiny, prompts, 12, Sampling(temperature=1.5, top_k=1, seed=4)) == generate(tiny, prompts, 12)
    assert generate(tiny, prompts, 12, Sampling(temperature=2.0, top_p=1e-6)) == generate(tiny, prompts, 12)


@pytest.mark.parametrize(
    "how", [{"temperature": 0.7}, {"temperature": 1.3, "top_p": 0.6}, {"temperature": 1.0, "top_k": 4}]
)
def test_tokens_come_as_often_as_they_should(how) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(30, generator=torch.Generator().manual_seed(0)) * 2
    scores = TemperatureLogitsWarper(how["temperature"])(None, logits[None].clone())
    if "top_k" in how:
        scores = TopKLogitsWarper(how["top_k"])(None, scores)
    if "top_p" in how:
        scores = TopPLogitsWarper(how["top_p"])(None, scores)
    expected = scores[0].softmax(0)
    samplers = [Sampler(Sampling(**how, seed=i), torch.device("cpu")) for i in range(4000)]
    drawn = torch.bincount(choose(samplers, logits.expand(4000, -1)).tokens_B, minlength=30) / 4000
    assert (drawn[expected == 0] == 0).all()
    assert (drawn - expected).abs().max() < 0.03


def test_stop_strings_end_the_answer_before_them(tiny, prompts) -> None:
    whole = generate(tiny, prompts, 20)
    text = max((answer.text for answer in whole), key=len)
    string = text[3:5]
    cut = generate(tiny, prompts, 20, Sampling(stop=(string, "never there")))
    for before, after in zip(whole, cut, strict=True):
        assert after.text == before.text.split(string)[0].strip()
        assert after.stopped or string not in before.text


def test_merged_or_not_the_answer_is_the_same(tiny, prompts) -> None:
    inject(tiny.model.module, LoraConfig(rank=4))
    for name, parameter in sorted(tiny.model.module.named_parameters()):
        if "lora_b" in name:
            parameter.data += 0.05
    adapted = generate(tiny, prompts, 10)
    merged = copy.copy(tiny.model)
    merged.module = merge(tiny.model.module)
    assert adapted == generate(type(tiny)(**{**vars(tiny), "model": merged}), prompts, 10)
