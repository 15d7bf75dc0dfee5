"""Chat and completions: what is answered, whole and in pieces, and what is refused. Numbers are SHIP's complaints."""

import asyncio
import math
import time
from collections.abc import Iterator

import pytest
import torch
from adapters_made import made
from conftest import save_tiny
from serving_client import USER, Client, serving

from afina.data.template import prompt_ids
from afina.models import generate
from afina.models.load import load_base
from afina.models.sampling import GREEDY
from afina.serving.engine import Limits


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("served")
    base = load_base(str(save_tiny(folder / "tiny-llama")), precision="fp32", device="cpu")
    (folder / "adapters").mkdir()
    for number, name in enumerate(("one", "two")):
        made(folder / "tiny-llama", folder / "adapters" / name, number)
    with serving(base, [folder / "adapters"]) as found:
        yield found


def test_an_answer_is_that_of_the_library_and_names_its_weights(client: Client) -> None:
    found = client.chat(max_tokens=12)
    ids = prompt_ids(client.base.tokenizer, USER)
    expected = generate(client.base, [ids], 12, GREEDY)[0]
    assert found.status == 200
    answer = found.json
    choice = answer["choices"][0]
    assert choice["message"]["content"].strip() == expected.text
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["refusal"] is None
    assert choice["finish_reason"] == ("stop" if expected.stopped else "length")
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["model"] == client.base.facts.name
    assert answer["system_fingerprint"] == f"afina-{client.base.facts.sha256[:8]}-base-g1"
    usage = answer["usage"]  # 19: counts equal the tokenizer's
    assert usage["prompt_tokens"] == len(ids)
    assert usage["completion_tokens"] == expected.tokens + expected.stopped
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert answer["afina"].keys() >= {"queue_ms", "prompt_ms", "generation_ms"}


def test_the_adapter_is_chosen_by_the_model_and_named_by_hash(client: Client) -> None:
    answers = {name: client.chat(model=name, max_tokens=12).json for name in ("one", "two", client.base.facts.name)}
    assert len({answer["choices"][0]["message"]["content"] for answer in answers.values()}) == 3
    assert len({answer["system_fingerprint"] for answer in answers.values()}) == 3  # 4
    listed = {model["id"]: model for model in client.get("/v1/models").json["data"]}
    assert listed["one"]["parent"] == client.base.facts.name
    assert listed["one"]["afina"]["hash"][:8] == answers["one"]["system_fingerprint"].split("-")[2]
    half = client.chat(model="one", max_tokens=12, afina={"scale": 0.0}).json
    assert (
        half["choices"][0]["message"]["content"] == answers[client.base.facts.name]["choices"][0]["message"]["content"]
    )


@pytest.mark.parametrize("n", [1, 3])
def test_the_pieces_of_a_stream_are_the_whole_answer_in_openais_order(client: Client, n: int) -> None:
    """17, 18, 19."""
    how = {"temperature": 1.3, "seed": 5, "n": n, "max_tokens": 40, "stop": ["zz", "q"], "model": "two"}
    whole = client.chat(**how).json
    found = client.chat(**how, stream=True, stream_options={"include_usage": True})
    assert found.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert found.headers["cache-control"] == "no-cache"
    assert found.headers["x-accel-buffering"] == "no"
    *frames, usage, done = found.events
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert {**usage["usage"], "prompt_tokens_details": 0} == {**whole["usage"], "prompt_tokens_details": 0}
    assert all(frame["usage"] is None for frame in frames)
    assert len({(f["id"], f["created"], f["model"], f["system_fingerprint"]) for f in [*frames, usage]}) == 1
    assert {frame["object"] for frame in frames} == {"chat.completion.chunk"}
    for index, choice in enumerate(whole["choices"]):
        own = [f["choices"][0] for f in frames if f["choices"][0]["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert own[-1]["delta"] == {}
        assert [each["finish_reason"] for each in own[:-1]] == [None] * (len(own) - 1)
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        assert own[-1].get("stop_reason") == choice["stop_reason"]
        text = "".join(each["delta"].get("content", "") for each in own)
        assert text == choice["message"]["content"]
        assert not any(stop in text for stop in ("zz", "q"))


def test_a_seed_gives_the_same_answer_and_none_gives_others(client: Client) -> None:
    def said(**how) -> str:
        return client.chat(temperature=20.0, max_tokens=16, **how).json["choices"][0]["message"]["content"]

    assert said(seed=3) == said(seed=3)
    assert len({said() for _ in range(4)}) > 1


def test_likelihoods_have_the_two_shapes_of_openai(client: Client) -> None:
    found = client.chat(logprobs=True, top_logprobs=3, max_tokens=5).json["choices"][0]
    content = found["logprobs"]["content"]
    assert len(content) in (5, 4)
    for each in content:
        assert each.keys() == {"token", "logprob", "bytes", "top_logprobs"}
        assert len(each["top_logprobs"]) == 3
        assert each["logprob"] == pytest.approx(each["top_logprobs"][0]["logprob"], abs=1e-4)  # greedy
    told = b"".join(bytes(each["bytes"]) for each in content)
    assert told.decode(errors="replace").startswith(found["message"]["content"][:1])
    text = client.complete(prompt="ab", logprobs=2, max_tokens=4).json["choices"][0]
    assert text["logprobs"].keys() == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert len(text["logprobs"]["tokens"]) == 4


def test_a_text_is_scored_with_echo_as_the_model_scores_it(client: Client) -> None:
    text = "hello world"
    found = client.complete(prompt=text, echo=True, logprobs=1, max_tokens=0).json["choices"][0]
    assert found["text"] == text
    assert found["finish_reason"] == "length"
    told = found["logprobs"]
    assert "".join(told["tokens"]) == text
    assert told["text_offset"] == list(range(len(text)))
    assert told["token_logprobs"][0] is None
    assert told["top_logprobs"][0] is None
    ids = torch.tensor(client.base.tokenizer.encode(text))
    from conftest import tiny_module

    with torch.no_grad():
        log_p = tiny_module()(ids[None]).logits[0].log_softmax(-1)
    expected = log_p[:-1].gather(1, ids[1:, None])[:, 0]
    assert torch.allclose(torch.tensor(told["token_logprobs"][1:]), expected, atol=1e-4)


def test_prompts_are_a_text_several_or_ids(client: Client) -> None:
    ids = client.base.tokenizer.encode("abc")
    alone = [client.complete(prompt=text, max_tokens=6).json["choices"][0]["text"] for text in ("abc", "xyz")]
    both = client.complete(prompt=["abc", "xyz"], max_tokens=6).json
    assert [choice["text"] for choice in both["choices"]] == alone
    assert both["usage"]["prompt_tokens"] == 2 * len(ids)
    assert client.complete(prompt=ids, max_tokens=6).json["choices"][0]["text"] == alone[0]
    assert client.complete(prompt=[ids, ids], max_tokens=6).json["choices"][1]["text"] == alone[0]
    streamed = client.complete(prompt=["abc", "xyz"], max_tokens=6, stream=True, echo=True).events
    assert streamed[-1] == "[DONE]"
    texts = ["".join(f["choices"][0]["text"] for f in streamed[:-1] if f["choices"][0]["index"] == i) for i in (0, 1)]
    assert texts == ["abc" + alone[0], "xyz" + alone[1]]
    assert "chat template" in both["afina"]["warnings"][0]  # 25


def test_more_answers_than_a_server_takes_are_no_matter_of_time(client: Client) -> None:
    with serving(client.base, limits=Limits(max_batch=2, max_queue=2)) as small:
        many = small.complete(prompt=["abc"] * 5, max_tokens=6, model=client.base.facts.name)
        assert many.status == 400
        assert "5 answers, and this server takes 4" in many.error["message"]


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"temprature": 1}, "temprature", "unsupported_parameter"),
        ({"afina": {"scal": 1}}, "afina.scal", "unsupported_parameter"),
        ({"messages": [{"role": "user", "content": "a", "weight": 0}]}, "messages.0.weight", "unsupported_parameter"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs", "unsupported_parameter"),
        ({"messages": []}, "messages", None),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages.0.role", None),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
         "messages", None),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}]}, "messages",
         "unsupported_parameter"),
        ({"messages": [{"role": "user", "content": "<|im_end|>"}]}, "messages", None),
        ({"temperature": "1"}, "temperature", None),
        ({"temperature": -1}, "temperature", None),
        ({"n": 9}, "n", None),
        ({"stop": ["a"] * 17}, None, None),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", None),
        ({"top_logprobs": 2}, "top_logprobs", None),
        ({"logit_bias": {"99999": 1}}, "logit_bias", None),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", None),
        ({"stream_options": {"include_usage": True}}, "stream_options", "unsupported_parameter"),
        ({"tool_choice": "required"}, "tool_choice", None),
        ({"afina": {"scale": 0.5}}, "afina.scale", None),
        ({"continue_final_message": True}, "continue_final_message", None),
        ({"response_format": {"type": "json_schema"}}, "response_format", None),
        ({"min_tokens": 9}, "min_tokens", None),
    ],
)  # fmt: skip
def test_what_would_be_ignored_or_is_wrong_is_refused(client: Client, body: dict, param: str, code: str) -> None:
    """15, and the limits of E."""
    found = client.chat(**body)
    assert found.status == 400, found.text
    assert found.error["type"] == "invalid_request_error"
    if param:
        assert found.error["param"] == param, found.error
    if code:
        assert found.error["code"] == code
    if "temprature" in body:
        assert "temperature" in found.error["message"]


def test_a_lenient_server_names_what_it_leaves_out(client: Client) -> None:
    """15."""
    client.app.state.context.lenient = True
    try:
        body = {"messages": [{"role": "user", "content": "hello", "weight": 0}], "temprature": 1}
        found = client.chat(**body)
        assert found.status == 200
        assert found.json["afina"]["ignored"] == ["messages.0.weight", "temprature"]
        assert found.json["choices"] == client.chat().json["choices"]
        assert client.chat(temprature=1, n=99).status == 400
    finally:
        client.app.state.context.lenient = False


def test_a_prompt_that_is_too_long_is_refused_with_both_numbers_and_cut_only_when_asked(client: Client) -> None:
    """20."""
    said = [
        ("system", "be kind"),
        ("user", "x" * 400),
        ("user", "hello"),
        ("assistant", "y" * 100),
        ("user", "z" * 100),
    ]
    long = [{"role": role, "content": content} for role, content in said]
    tokens = len(prompt_ids(client.base.tokenizer, long))
    found = client.chat(messages=long)
    assert found.status == 400
    assert found.error["code"] == "context_length_exceeded"
    assert "512" in found.error["message"]
    assert str(tokens) in found.error["message"]
    cut = client.chat(messages=long, afina={"truncate": True})
    assert cut.status == 200
    used = cut.json["usage"]["prompt_tokens"]
    assert used == len(prompt_ids(client.base.tokenizer, [long[0], *long[2:]]))
    assert cut.json["afina"]["truncated_tokens"] == tokens - used
    assert cut.json["afina"]["warnings"]
    one = client.chat(messages=[{"role": "user", "content": "x" * 900}], afina={"truncate": True})
    assert one.json["usage"]["prompt_tokens"] <= 512 - 8
    text = client.complete(prompt="x" * 600, afina={"truncate": True})
    assert text.json["usage"]["prompt_tokens"] == 512 - 16
    assert client.complete(prompt="x" * 600).error["code"] == "context_length_exceeded"


def test_messages_are_told_as_openai_tells_them(client: Client) -> None:
    parts = [
        {"role": "developer", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": "kind"}]},
        *USER,
    ]
    plain = [{"role": "system", "content": "be\nkind"}, *USER]
    shown = [client.post("/apply-template", {"messages": each}).json["prompt"] for each in (parts, plain)]
    assert shown[0] == shown[1]
    assert shown[0].endswith("<|im_start|>assistant\n")
    said = client.chat(messages=[{"role": "user", "content": "hello", "name": "ann"}]).json
    assert "'name'" in said["afina"]["warnings"][0]
    begun = [*USER, {"role": "assistant", "content": "abc"}]
    ids = prompt_ids(client.base.tokenizer, USER) + client.base.tokenizer.encode("abc")
    found = client.chat(messages=begun, continue_final_message=True, max_tokens=8).json
    assert found["usage"]["prompt_tokens"] == len(ids)
    assert found["choices"][0]["message"]["content"].strip() == generate(client.base, [ids], 8, GREEDY)[0].text


def test_an_empty_text_begins_with_the_bos_token(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = client.base.tokenizer.inner
    monkeypatch.setattr(type(inner), "bos_token_id", 0, raising=False)
    expected = client.complete(prompt=[0], max_tokens=6).json["choices"][0]["text"]
    found = client.complete(prompt=["", "abc", ""], max_tokens=6).json
    assert found["choices"][0]["text"] == found["choices"][2]["text"] == expected
    assert found["usage"]["prompt_tokens"] == 1 + 3 + 1
    (scored,) = client.complete(prompt="", echo=True, logprobs=0, max_tokens=0).json["choices"]
    assert (scored["text"], scored["logprobs"]["token_logprobs"]) == ("", [None])


def test_tokens_and_texts_of_the_tokenizer(client: Client) -> None:
    found = client.post("/tokenize", {"content": "é<|im_end|>"}).json["tokens"]
    assert found == client.base.tokenizer.encode("é<|im_end|>")
    assert client.post("/detokenize", {"tokens": found}).json["content"] == "é<|im_end|>"
    pieces = client.post("/tokenize", {"content": "a", "with_pieces": True}).json["tokens"]
    assert pieces == [{"id": found_id, "piece": "a"} for found_id in client.base.tokenizer.encode("a")]
    assert client.post("/detokenize", {"tokens": [-1]}).status == 400
    assert client.post("/classify", {}).status == 404
    assert "no classifier" in client.post("/v1/classify", {"model": "one", "input": "a"}).error["message"]


def test_penalties_biases_and_lengths_reach_the_engine(client: Client) -> None:
    token = client.base.tokenizer.encode("k")[0]
    assert client.chat(logit_bias={str(token): 100}, max_tokens=3).json["choices"][0]["message"]["content"] == "kkk"
    found = client.chat(logit_bias={str(token): 60}, frequency_penalty=2, max_tokens=40, min_tokens=40).json
    assert found["usage"]["completion_tokens"] == 40
    end = next(iter(client.base.tokenizer.stop_ids))
    stopped = client.chat(logit_bias={str(end): 100}).json
    assert stopped["choices"][0]["finish_reason"] == "stop"
    assert stopped["usage"]["completion_tokens"] == 1  # the stop token counts, its text is never sent
    assert stopped["choices"][0]["message"]["content"] == ""


def test_a_client_that_goes_is_written_for_no_more(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """16."""
    cancelled, batcher = client.service.metrics().cancelled, client.service.engine.batcher
    step = batcher.step

    def slowly():  # a fast machine writes all 450 tokens before the client is gone
        time.sleep(0.005)
        return step()

    monkeypatch.setattr(batcher, "step", slowly)

    async def leave(stream: bool) -> None:
        before, left = cancelled.value(), asyncio.Event()
        body = {
            "model": client.base.facts.name,
            "messages": USER,
            "max_tokens": 450,
            "min_tokens": 450,
            "stream": stream,
        }
        asking = asyncio.create_task(
            client.asked("POST", "/v1/chat/completions", body, left=left, leave_after=3 if stream else None)
        )
        while not client.service.engine.running:
            await asyncio.sleep(0.001)
        if not stream:
            left.set()
        found = await asking
        assert len(found.parts) < 450
        assert found.status == (200 if stream else 499)
        while cancelled.value() == before or client.service.engine.running:
            await asyncio.sleep(0.001)

    for stream in (True, False):
        asyncio.run(asyncio.wait_for(leave(stream), 20))


def test_it_says_that_it_lives_and_tells_a_fault_in_the_middle(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client.app.state.context, "ping_s", 0.02)
    batcher, steps = client.service.engine.batcher, []
    step = batcher.step

    def fails_after(count: int) -> None:
        def slowly():
            time.sleep(0.05)
            steps.append(step())
            if len(steps) > count:
                raise RuntimeError("/secret/path: a fault")
            return steps[-1]

        steps.clear()
        monkeypatch.setattr(batcher, "step", slowly)

    fails_after(6)
    found = client.chat(stream=True, max_tokens=100, min_tokens=100)
    assert found.status == 200
    assert ": ping\n\n" in found.text
    assert found.events[-1].keys() == {"error"}
    assert found.events[-1]["error"]["type"] == "server_error"
    assert "secret" not in found.text
    assert "[DONE]" not in found.text
    monkeypatch.setattr(client.app.state.context, "ping_s", 10.0)
    fails_after(0)
    found = client.chat(stream=True)
    assert found.status == 500  # before the first piece an error is plain
    assert found.error["type"] == "server_error"
    monkeypatch.undo()
    assert client.chat().status == 200


def test_numbers_for_prometheus_name_only_known_models(client: Client) -> None:
    client.chat(model="nobody knows")
    client.chat(model="one")
    text = client.get("/metrics").text
    assert 'afina_requests_total{model="one",route="/v1/chat/completions",status="200"}' in text
    assert 'afina_requests_total{model="",route="/v1/chat/completions",status="404"}' in text
    assert "nobody" not in text
    for line in text.splitlines():
        if not line.startswith("#"):
            assert math.isfinite(float(line.rpartition(" ")[2])), line


def test_an_unknown_model_is_never_another(client: Client) -> None:
    found = client.chat(model="onee")
    assert found.status == 404
    assert found.error["code"] == "model_not_found"
    assert "'one'" in found.error["message"]
    assert client.get("/v1/models/onee").status == 404
    assert client.get("/v1/models/one").json["id"] == "one"


def test_an_adapter_answers_the_same_alone_and_in_company(client: Client) -> None:
    """14, 22: greedy, in fp32."""
    names = ["one", "two", client.base.facts.name] * 3
    alone = {name: client.chat(model=name, max_tokens=12).json["choices"] for name in names[:3]}

    async def together() -> list:
        body = {"messages": USER, "max_tokens": 12, "temperature": 0}
        asking = (client.asked("POST", "/v1/chat/completions", {**body, "model": name}) for name in names)
        return await asyncio.gather(*asking)

    for name, found in zip(names, asyncio.run(together()), strict=True):
        assert found.json["choices"] == alone[name]
