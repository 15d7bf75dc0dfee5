"""The server with a socket: it says where it listens, drains when it is told to end, and clients of others' making
speak to it."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import pytest
from serving_client import USER, listening, serving

from afina.core.errors import SettingsError
from afina.serving.http.openapi import description
from afina.serving.http.routes import ROUTES
from afina.serving.http.sockets import bind


@contextmanager
def answer(port: int, body: dict) -> Iterator[HTTPResponse]:
    with closing(HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        with connection.getresponse() as found:
            yield found


def test_it_listens_logs_and_finishes_what_runs(tiny) -> None:
    name = tiny.facts.name
    with serving(tiny) as client, listening(client, log_requests=True) as (port, said):
        body = {"model": name, "messages": USER, "max_tokens": 8, "temperature": 0}
        with answer(port, body) as found:
            assert found.status == 200
            assert json.loads(found.read())["choices"][0]["message"]["content"]
        slow(client, 0.002)
        with answer(port, {**body, "max_tokens": 300, "min_tokens": 300, "stream": True}) as long:
            assert long.status == 200
            first = long.read(10)
            client.app.state.context.stopping = True
            with answer(port, body) as late:
                assert late.status == 503
                assert json.loads(late.read())["error"]["type"] == "unavailable_error"
            assert (first + long.read()).endswith(b"data: [DONE]\n\n")
    lines = [line for line in said if "/v1/chat/completions" in line]
    assert lines[0].startswith(f"200 POST /v1/chat/completions {name} ")
    assert any(line.startswith("503 ") for line in lines)


def test_what_does_not_end_in_time_ends_with_an_error(tiny) -> None:
    with serving(tiny) as client, listening(client, grace=0.2) as (port, _):
        body = {"model": tiny.facts.name, "messages": USER, "max_tokens": 480, "min_tokens": 480, "stream": True}
        slow(client, 0.02)
        with answer(port, body) as found:
            found.read(10)
            client.app.state.context.stopping = True
            rest = found.read().decode()
        assert json.loads(rest.strip().rpartition("data: ")[2])["error"]["type"] == "unavailable_error"
        assert "[DONE]" not in rest


def slow(client: Any, seconds: float) -> None:
    """Each step of the engine takes so long."""
    batcher = client.service.engine.batcher
    step = batcher.step
    batcher.step = lambda: time.sleep(seconds) or step()


def test_an_address_that_is_taken_is_said(tiny) -> None:
    held = bind("127.0.0.1", 0)
    held.listen()
    try:
        with pytest.raises(SettingsError, match="cannot listen"):
            bind("127.0.0.1", held.getsockname()[1])
    finally:
        held.close()
    with pytest.raises(SettingsError):
        bind("no.such.host.invalid", 0)


def test_each_route_is_described() -> None:
    found = description(list(ROUTES))
    assert json.loads(json.dumps(found)) == found
    for route in ROUTES:
        path = route.path.replace(":path", "")
        operation = found["paths"][path][route.method.lower()]
        assert operation["security"] == ([] if path == "/health" else [{"key": []}])
        assert ("requestBody" in operation) == (route.body is not None)
    schemas = found["components"]["schemas"]
    references = set(_references(found))
    assert references
    assert all(each.removeprefix("#/components/schemas/") in schemas for each in references)


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for each in value.values():
            yield from _references(each)
    elif isinstance(value, list):
        for each in value:
            yield from _references(each)


def test_openai_speaks_to_it(tiny) -> None:
    openai = pytest.importorskip("openai", reason="the package openai is not installed")
    name = tiny.facts.name
    with serving(tiny) as client, listening(client) as (port, _):
        asking = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        how = {"model": name, "messages": USER, "max_tokens": 12, "temperature": 0}
        whole = asking.chat.completions.create(**how, logprobs=True, top_logprobs=2)
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
        assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
        frames = list(asking.chat.completions.create(**how, stream=True, stream_options={"include_usage": True}))
        text = "".join(frame.choices[0].delta.content or "" for frame in frames if frame.choices)
        assert text == whole.choices[0].message.content
        assert frames[-1].usage.total_tokens == whole.usage.total_tokens
        assert {model.id for model in asking.models.list()} == {name}
        completion = asking.completions.create(model=name, prompt="ab", max_tokens=4, logprobs=1, echo=True)
        assert completion.choices[0].text.startswith("ab")
        with pytest.raises(openai.NotFoundError, match="no model"):
            asking.chat.completions.create(**{**how, "model": "nobody"})
        with pytest.raises(openai.BadRequestError) as wrong:
            asking.chat.completions.create(**how, extra_body={"temprature": 1})
        assert wrong.value.code == "unsupported_parameter"
        with asking.chat.completions.create(**{**how, "max_tokens": 400}, stream=True) as stream:
            next(iter(stream))
        for _ in range(400):
            if client.service.metrics().cancelled.value():
                break
            time.sleep(0.01)
        assert client.service.metrics().cancelled.value() == 1
        if pytest.importorskip("llguidance"):
            _openai_forms(asking, how)


def _openai_forms(asking: Any, how: dict) -> None:
    from pydantic import BaseModel

    class Ticket(BaseModel, extra="forbid"):
        urgent: bool

    found = asking.chat.completions.parse(**{**how, "max_tokens": 60}, response_format=Ticket)
    assert isinstance(found.choices[0].message.parsed.urgent, bool)
    tool = {"type": "function", "function": {"name": "close", "parameters": Ticket.model_json_schema()}}
    called = asking.chat.completions.create(**{**how, "max_tokens": 250}, tools=[tool], tool_choice="required")
    call = called.choices[0].message.tool_calls[0]
    assert call.function.name == "close"
    Ticket.model_validate_json(call.function.arguments)
    with asking.chat.completions.stream(**{**how, "max_tokens": 250}, tools=[tool], tool_choice="required") as events:
        streamed = events.get_final_completion().choices[0].message.tool_calls[0]
    assert json.loads(streamed.function.arguments) == json.loads(call.function.arguments)


def test_lm_eval_scores_through_it_as_the_model_scores(tiny, tiny_folder) -> None:
    models = pytest.importorskip("lm_eval.models.openai_completions", reason="lm-eval[api] is not installed")
    from lm_eval.api.instance import Instance

    pairs = [("hello", " world"), ("abc", "def"), ("a b c", " d")]
    with serving(tiny) as client, listening(client) as (port, _):
        model = models.LocalCompletionsAPI(
            model=tiny.facts.name,
            base_url=f"http://127.0.0.1:{port}/v1/completions",
            tokenizer_backend="huggingface",
            tokenizer=str(tiny_folder),
            max_length=512,
        )
        found = model.loglikelihood([Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)])
        expected = []
        for before, after in pairs:
            told = client.complete(prompt=before + after, echo=True, logprobs=1, max_tokens=0).json["choices"][0]
            expected.append(sum(told["logprobs"]["token_logprobs"][len(before) :]))
    assert [value for value, _ in found] == pytest.approx(expected, abs=1e-4)


def test_nothing_that_the_description_allows_is_a_fault_of_the_server(tiny) -> None:
    schemathesis = pytest.importorskip("schemathesis", reason="the package schemathesis is not installed")
    from hypothesis import HealthCheck, given, settings

    with serving(tiny) as client, listening(client) as (port, _):
        schema = schemathesis.openapi.from_dict(description(list(ROUTES)))
        schema.config.update(base_url=f"http://127.0.0.1:{port}")
        checked = 0
        for operation in schema.get_all_operations():
            checked += 1

            @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
            @given(case=operation.ok().as_strategy())
            def check(case: Any) -> None:
                answer = case.call(headers={"x-test": "1"})
                assert answer.status_code < 500, answer.text

            check()
    assert checked == len(list(ROUTES))


def test_a_second_request_does_not_wait_for_the_first(tiny) -> None:
    with serving(tiny) as client:
        order: list[str] = []

        async def ask(name: str, tokens: int) -> None:
            body = {"model": tiny.facts.name, "messages": USER, "max_tokens": tokens, "min_tokens": tokens}
            await client.asked("POST", "/v1/chat/completions", body)
            order.append(name)

        async def both() -> None:
            await asyncio.gather(ask("long", 300), ask("short", 2))

        asyncio.run(both())
    assert order == ["short", "long"]
