"""Requests that no server answers with more than an error: of each kind its bytes, and the statuses it may get."""

import json
import random
from collections.abc import Callable
from typing import Any

Kind = tuple[str, Callable[[random.Random, str], bytes], tuple[int, ...]]
_BAD = (400,)
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def request(path: str, body: Any = None, method: str = "POST", **headers: str | None) -> bytes:
    """Of one request and connection; a header that is None is left out."""
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    given = {
        "host": "127.0.0.1", "connection": "close", "content-type": "application/json",
        "content-length": str(len(content)), **{name.replace("_", "-"): text for name, text in headers.items()},
    }  # fmt: skip
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {text}" for name, text in given.items() if text is not None)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + content


def _chat(**change: Any) -> Callable[[random.Random, str], bytes]:
    def made(rng: random.Random, model: str) -> bytes:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": rng.random() < 0.5}
        return request(CHAT, body | change)

    return made


def _text(**change: Any) -> Callable[[random.Random, str], bytes]:
    return lambda rng, model: request(TEXT, {"model": model, "prompt": "hello"} | change)


def _raw(path: str, content: bytes, **headers: str | None) -> Callable[[random.Random, str], bytes]:
    return lambda rng, model: request(path, content, **headers)


def _as(method: str, path: str, body: Any = None, **headers: str | None) -> Callable[[random.Random, str], bytes]:
    return lambda rng, model: request(path, body, method, **headers)


def _cut(rng: random.Random, model: str) -> bytes:
    whole = json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}]}).encode()
    return request(CHAT, whole[: rng.randrange(1, len(whole))])


def _noise(rng: random.Random, model: str) -> bytes:
    return request(rng.choice([CHAT, TEXT, "/tokenize"]), rng.randbytes(rng.randrange(1, 200)))


_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
KINDS: list[Kind] = [
    ("half of the JSON", _cut, _BAD),
    ("noise", _noise, _BAD),
    ("nothing", _raw(CHAT, b""), _BAD),
    ("a list", _raw(CHAT, b"[]"), _BAD),
    ("not UTF-8", _raw(CHAT, b'{"model": "\xff\xfe"}'), _BAD),
    ("NaN", _raw(TEXT, b'{"model": "m", "prompt": "a", "temperature": NaN}'), _BAD),
    ("endless number", _raw(TEXT, b'{"model": "m", "prompt": "a", "top_p": 1e999}'), _BAD),
    ("many digits", _raw(TEXT, b'{"model": "m", "prompt": "a", "seed": ' + b"9" * 5000 + b"}"), _BAD),
    ("nested", _raw(CHAT, b"[" * 100_000), _BAD),
    ("half a character", _raw(TEXT, b'{"model": "m", "prompt": "\\ud800"}'), _BAD),
    ("other type", _raw(CHAT, b"a=b", content_type="application/x-www-form-urlencoded"), (415,)),
    ("no type", _raw(CHAT, b"{}", content_type=None), (415,)),
    ("too large", _raw(CHAT, b"{}", content_length=str(1 << 40)), (413,)),
    ("unknown field", _chat(temprature=1), _BAD),
    ("unknown field inside", _chat(stream=True, stream_options={"usage": True}), _BAD),
    ("text as number", _chat(temperature="0.5"), _BAD),
    ("negative", _chat(max_tokens=-1), _BAD),
    ("no answer", _chat(n=0), _BAD),
    ("too many answers", _chat(n=1000), _BAD),
    ("no messages", _chat(messages=[]), _BAD),
    ("no such role", _chat(messages=[{"role": "wizard", "content": "a"}]), _BAD),
    ("picture", _chat(messages=[{"role": "user", "content": [_PART]}]), _BAD),
    ("no such model", _chat(model="nobody"), (404,)),
    ("path as model", _chat(model="../../etc/passwd"), (404,)),
    ("too long", _chat(messages=[{"role": "user", "content": "long " * 500}]), _BAD),
    ("too long an answer", _text(max_tokens=1 << 20), _BAD),
    ("tokens there are not", _text(prompt=[5, 1 << 30]), _BAD),
    ("negative token", _text(prompt=[-1]), _BAD),
    ("no prompt", _text(prompt=""), _BAD),
    ("suffix", _text(suffix="x"), _BAD),
    ("least above most", _text(max_tokens=2, min_tokens=3), _BAD),
    ("usage without a stream", _chat(stream=False, stream_options={"include_usage": True}), _BAD),
    ("bias of no token", _chat(logit_bias={"one": 1}), _BAD),
    ("bad expression", _chat(afina={"regex": "(("}), _BAD),
    ("bad schema", _chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": 7}}}),
     _BAD),
    ("tool without a name", _chat(tools=[{"type": "function", "function": {}}]), _BAD),
    ("scale of nothing", _chat(afina={"scale": "much"}), _BAD),
    ("wrong method", _as("GET", CHAT), (405,)),
    ("no such path", _as("POST", "/v2/chat", {}), (404,)),
    ("foreign host", _as("GET", "/v1/models", host="evil.example"), (400, 403, 421)),
    ("foreign page", _as("POST", CHAT, {}, origin="https://evil.example"), (403,)),
    ("admin without a key", _as("POST", "/v1/adapters", {"name": "a"}), (401, 403)),
    ("admin with another key", _as("DELETE", "/v1/adapters/first", authorization="Bearer wrong-key"), (401, 403)),
    ("unknown generation", _as("DELETE", "/v1/adapters/first?expected_generation=x"), (401, 403)),
    ("no HTTP", lambda rng, model: b"\x16\x03\x01" + rng.randbytes(50) + b"\r\n\r\n", _BAD),
    ("bad length", _raw(CHAT, b"{}", content_length="two"), _BAD),
    ("line in a header", lambda rng, model: b"GET / HTTP/1.1\r\nhost\r\n\r\n", _BAD),
]  # fmt: skip
NO_HTTP = {"no HTTP", "bad length", "line in a header"}  # which the protocol refuses, before anything of ours


def admin_kinds(key: str) -> list[Kind]:
    """What an admin may send, and must not get."""
    with_key = {"authorization": f"Bearer {key}"}

    def load(**body: Any) -> Callable[[random.Random, str], bytes]:
        return _as("POST", "/v1/adapters", body, **with_key)

    return [
        ("folder outside", load(name="a", path="../../etc"), _BAD),
        ("link outside", load(name="a", path="outside"), _BAD),
        ("no such folder", load(name="a", path="nowhere"), _BAD),
        ("damaged", load(name="a", path="damaged"), _BAD),
        ("changes nothing", load(name="a", path="nothing"), _BAD),
        ("no name", load(name="a/b", path="third"), _BAD),
        ("taken", load(name="first", path="third"), (409,)),
        ("other generation", load(name="first", path="third", replace=True, expected_generation=77), (409,)),
        ("unload nothing", _as("DELETE", "/v1/adapters/nobody", **with_key), (404,)),
        ("odd wait", _as("DELETE", "/v1/adapters/first?wait_s=nan", **with_key), _BAD),
    ]
