"""What a client is told is wrong, in words of ours, and of which field."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving_client import USER, listening, serving

from afina.core.errors import near
from afina.models import Base
from afina.serving.http.errors import without_paths


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"stop": 1}, "stop", "stop has to be text or a list"),
        ({"stop": [1]}, "stop.0", "stop.0 has to be text"),
        ({"stop": ["a"] * 17}, "stop", "stop has up to 16 items"),
        ({"stop": ""}, "stop", "stop has at least 1 character"),
        ({"tool_choice": "maybe"}, "tool_choice", "tool_choice has to be 'none', 'auto' or 'required' or an object"),
        ({"messages": ["a"]}, "messages.0", "messages.0 has to be an object"),
        ({"messages": [{"content": "a"}]}, "messages.0.role", "messages.0.role is missing"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "content has to be text or a list"),
        ({"messages": [{"role": "user", "contnt": "a"}]}, "messages.0.contnt", "Did you mean 'content'"),
        ({"max_tokens": -1}, "max_tokens", "max_tokens has to be at least 1"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens has to be at least 1"),
        ({"max_tokens": 1.5}, "max_tokens", "max_tokens has to be a whole number"),
        ({"temperature": "1", "n": 0}, "temperature", "temperature has to be a number; n has to be at least 1"),
        ({"logit_bias": {"5": "a"}}, "logit_bias.5", "logit_bias.5 has to be a number"),
        ({"Temperature": 1}, "Temperature", "Did you mean 'temperature'"),
        ({"messages": [{"role": "user", "content": "a" * 600}]}, "messages", "the prompt has 6"),
    ],
)
def test_what_is_wrong_with_a_chat(tiny: Base, body: dict, param: str, message: str) -> None:
    with serving(tiny) as client:
        found = client.chat(**body)
        assert found.status == 400
        assert message in found.error["message"]
        assert found.error["param"] == param
        assert not any(word in found.error["message"] for word in ("Input", "constr", "[", "valid"))


@pytest.mark.parametrize(
    ("prompt", "param", "message"),
    [
        (5, "prompt", "prompt has to be text or a list"),
        ([[1, "a"]], "prompt.0.1", "prompt.0.1 has to be a whole number"),
        ([{}], "prompt.0", "prompt.0 has to be text or a whole number or a list"),
        ([[]], "prompt.0", "prompt.0 has at least 1 item"),
        ("a" * 600, "prompt", "the prompt has 600"),
        ("<|im_end|>", "prompt", "<|im_end|>"),
        ([999], "prompt", "999 is no token"),
        ([], "prompt", "prompt is an empty list"),
        ("", "prompt", "the prompt is empty, and the model's tokenizer has no BOS token"),
        (["a", ""], "prompt", "the prompt is empty, and"),
    ],
)
def test_what_is_wrong_with_a_prompt(tiny: Base, prompt: object, param: str, message: str) -> None:
    with serving(tiny) as client:
        found = client.complete(prompt=prompt)
        assert found.status == 400
        assert message in found.error["message"]
        assert found.error["param"] == param


def test_an_answer_that_leaves_the_prompt_no_room_is_refused(tiny: Base) -> None:
    cut = {"truncate": True}
    with serving(tiny) as client:
        for most in (512, 600):
            for found in (
                client.complete(prompt="abc", max_tokens=most, afina=cut),
                client.chat(max_tokens=most, afina=cut),
            ):
                assert (found.status, found.error["code"]) == (400, "context_length_exceeded")
        assert client.complete(prompt="abc", max_tokens=511, afina=cut).json["usage"]["prompt_tokens"] == 1


def test_what_cannot_fit_is_not_encoded(tiny: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four million spaces took the server five seconds, in which all others waited."""
    long = " " * 900_000
    with serving(tiny) as client:
        begun = time.perf_counter()
        for found in (client.complete(prompt=long), client.chat(messages=[{"role": "user", "content": f"a{long}b"}])):
            assert found.status == 400
            assert found.error["code"] == "context_length_exceeded"
            assert "has 512 tokens; the prompt has 900,0" in found.error["message"]
        assert time.perf_counter() - begun < 2
        assert client.complete(prompt=long, afina={"truncate": True}, max_tokens=1).json["afina"]["truncated_tokens"]
        fits = "b" * 500
        assert client.complete(prompt=fits, max_tokens=1).status == 200


def test_a_long_text_is_the_same_encoded_beside_other_threads(tiny: Base) -> None:
    text = "née 5,000  €\n" * 6_000
    with ThreadPoolExecutor(1) as beside:
        assert beside.submit(tiny.tokenizer.encode, text).result() == tiny.tokenizer.encode(text)
    assert tiny.tokenizer.widest == len("<|endoftext|>")


def test_what_is_no_http_is_told_as_the_rest(tiny: Base) -> None:
    with serving(tiny) as client, listening(client) as (port, _):
        for wrong in (b"NONSENSE\r\n\r\n", b"GET / HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                connection.sendall(wrong)
                head, _, body = b"".join(iter(lambda: connection.recv(4096), b"")).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 ")
            assert b"content-type: application/json" in head.lower()
            assert "HTTP/1.1" in json.loads(body)["error"]["message"]


def test_a_form_is_told_by_its_own_field(tiny: Base) -> None:
    pytest.importorskip("llguidance", reason="needs afina[schema]")
    with serving(tiny) as client:
        for how, param in (({"regex": "(a{1000}){1000}"}, "afina.regex"), ({"regex": "("}, "afina.regex")):
            for found in (client.chat(afina=how), client.complete(prompt="a", afina=how)):
                assert (found.status, found.error["param"]) == (400, param)


def test_a_name_is_told_as_it_was_given(tiny: Base) -> None:
    with serving(tiny) as client:
        for name in ("/runs/demo", "a/b", "/"):
            found = client.chat(model=name)
            assert found.status == 404
            assert f"there is no model {name!r}" in found.error["message"]
        upper = client.chat(model=tiny.facts.name.upper())
        assert f"Did you mean {tiny.facts.name!r}" in upper.error["message"]
        wrong = client.ask("PUT", "/v1/models", {})
        assert (wrong.status, wrong.headers["allow"]) == (405, "GET, HEAD")
        both = client.ask("PUT", "/v1/adapters", {"messages": USER})
        assert (both.status, both.headers["allow"]) == (405, "GET, HEAD, POST")
        assert both.error["message"] == "PUT is not answered here, but GET, HEAD, POST"


def test_a_path_of_the_servers_is_cut_beside_one_that_was_given() -> None:
    assert without_paths("'/a/b': see /srv/models/x", "/a/b") == "'/a/b': see x"
    assert without_paths("'/a/b': see /srv/models/x") == "'b': see x"


def test_capitals_are_no_difference_of_names() -> None:
    assert near("DEMO", ["demo", "other"]) == " Did you mean 'demo'?"
    assert near("demo", ["DEMO", "Demo"]) == " Did you mean 'DEMO', 'Demo'?"
    assert near("xyz", ["demo"]) == ""
