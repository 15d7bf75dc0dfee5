"""Who may ask, and what is let in: keys, names, bodies. Numbers are SHIP's complaints."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from adapters_made import made
from conftest import save_tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_client import USER, Client, serving

from afina.core.errors import SettingsError
from afina.models.load import load_base
from afina.serving.http import Access
from afina.serving.http.errors import without_paths
from afina.serving.http.routes import ROUTES

KEY, ADMIN = "user-key-1234", "admin-key-1234"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("guarded")
    base = load_base(str(save_tiny(folder / "tiny-llama")), precision="fp32", device="cpu")
    made(folder / "tiny-llama", folder / "adapters" / "one")
    made(folder / "tiny-llama", folder / "elsewhere" / "two")
    (folder / "adapters" / "link").symlink_to(folder / "elsewhere" / "two")
    (folder / "keys").write_text(f"# of the users\n{KEY}\n\nanother-key-1234\n")
    (folder / "admin").write_text(f"{ADMIN}\n")
    access = Access.of("127.0.0.1", folder / "keys", folder / "admin", origins=["https://page.example"])
    with serving(base, [folder / "adapters"], access=access) as found:
        found.headers = {"authorization": f"Bearer {KEY}"}
        yield found


def path_of(pattern: str) -> str:
    return re.sub(r"\{\w+(:path)?\}", "one", pattern)


def test_every_route_but_health_needs_a_key(guarded: Client) -> None:
    """26: a walk over all routes, and over paths that are none."""
    walked = [(route.method, path_of(route.path)) for route in ROUTES]
    assert ("POST", "/v1/chat/completions") in walked
    walked += [("GET", "/"), ("PUT", "/v1/models"), ("GET", "/docs"), ("OPTIONS", "/v1/adapters"), ("GET", "/health/")]
    for method, path in walked:
        for wrong in ("", "Bearer wrong-key-1234", f"Basic {KEY}", KEY, "Bearer ", f"Bearer {KEY}x"):
            found = guarded.ask(method, path, {} if method == "POST" else None, authorization=wrong)
            if path == "/health":
                assert found.status == 200
            else:
                assert found.status == 401, (method, path, wrong)
                assert found.error["type"] == "authentication_error"
                assert found.error["code"] == "invalid_api_key"
    for key in (KEY, "another-key-1234", ADMIN):
        assert guarded.get("/v1/models", authorization=f"Bearer {key}").status == 200


def test_the_admins_routes_need_the_admins_key(guarded: Client) -> None:
    admins = [route for route in ROUTES if route.admin]
    assert {route.path for route in admins} >= {"/v1/adapters", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"}
    for route in admins:
        found = guarded.ask(route.method, path_of(route.path), {} if route.body else None)
        assert found.status == 403, route.name
        assert found.error["type"] == "permission_error"


@pytest.mark.parametrize(
    "path", ["/v1/adapters\n", "/v1//adapters", "/V1/adapters", "/v1/adapters/../adapters", "/health\n"]
)
def test_no_other_spelling_of_a_path_opens_it(guarded: Client, path: str) -> None:
    assert "adapters" not in path or guarded.get(path).status in (403, 404, 405)
    assert guarded.get(path, authorization="").status == 401


def test_without_an_admins_key_nobody_is_one(tiny) -> None:
    with serving(tiny) as open_to_all:
        assert open_to_all.get("/v1/models").status == 200
        found = open_to_all.get("/v1/adapters")
        assert found.status == 403
        assert "start the server with --admin-key-file FILE" in found.error["message"]


def test_adapters_are_loaded_replaced_and_unloaded_by_generation(guarded: Client) -> None:
    admin = {"authorization": f"Bearer {ADMIN}"}
    loaded = guarded.post("/v1/adapters", {"name": "new", "path": "one", "pin": True}, **admin)
    assert loaded.status == 201, loaded.text
    assert loaded.json["id"] == "new"
    assert loaded.json["afina"]["generation"] == 1
    again = guarded.post("/v1/adapters", {"name": "new", "path": "one"}, **admin)
    assert again.status == 409
    assert again.error["type"] == "conflict_error"
    assert again.error["code"] == "adapter_exists"
    stale = {"name": "new", "path": "one", "replace": True, "expected_generation": 7}
    assert guarded.post("/v1/adapters", stale, **admin).error["code"] == "generation_mismatch"
    replaced = guarded.post("/v1/adapters", {**stale, "expected_generation": 1}, **admin)
    assert replaced.json["afina"]["generation"] == 2
    assert guarded.chat(model="new").json["system_fingerprint"].endswith("-g2")
    assert guarded.ask("DELETE", "/v1/adapters/new?expected_generation=1", **admin).status == 409
    assert guarded.ask("DELETE", "/v1/adapters/new?force=1", **admin).error["code"] == "unsupported_parameter"
    assert guarded.ask("DELETE", "/v1/adapters/new?wait_s=-1", **admin).status == 400
    gone = guarded.ask("DELETE", "/v1/adapters/new?expected_generation=2&wait_s=5", **admin)
    assert gone.status == 200, gone.text
    assert gone.json["drained"] is True
    assert gone.json["freed_bytes"] > 0
    assert guarded.chat(model="new").status == 404
    assert guarded.ask("DELETE", "/v1/adapters/new", **admin).status == 404


def test_adapters_are_loaded_as_vllm_does(guarded: Client) -> None:
    admin = {"authorization": f"Bearer {ADMIN}"}
    found = guarded.post("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "one"}, **admin)
    assert (found.status, found.text) == (200, "Success: LoRA adapter 'x' added successfully.")
    assert guarded.chat(model="x").status == 200
    assert guarded.post("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "one"}, **admin).status == 409
    found = guarded.post("/v1/unload_lora_adapter", {"lora_name": "x"}, **admin)
    assert (found.status, found.text) == (200, "Success: LoRA adapter 'x' removed successfully.")
    assert guarded.post("/v1/unload_lora_adapter", {"lora_name": "x"}, **admin).status == 404


@pytest.mark.parametrize(
    "path", ["../elsewhere/two", "link", "/etc", ".", "..", "one/../../elsewhere/two", "a\0b", "x" * 999, "nothing"]
)
def test_nothing_outside_the_adapters_folder_is_loaded(guarded: Client, path: str, tmp_path: Path) -> None:
    """27."""
    admin = {"authorization": f"Bearer {ADMIN}"}
    found = guarded.post("/v1/adapters", {"name": "evil", "path": path}, **admin)
    assert found.status == 400, found.text
    assert str(tmp_path.parent) not in found.text
    assert "evil" not in [model["id"] for model in guarded.get("/v1/models").json["data"]]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example:8080"}, 403),
        ({"host": ""}, 400),
        ({"host": "localhost"}, 200),
        ({"host": "[::1]:8080"}, 200),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "http://127.0.0.1:8080"}, 200),
        ({"origin": "https://page.example"}, 200),
    ],
)
def test_forged_names_of_the_server_and_foreign_pages_are_refused(guarded: Client, headers: dict, status: int) -> None:
    assert guarded.get("/v1/models", **headers).status == status
    if status == 200:
        assert guarded.chat().status == 200


def test_only_this_machine_reaches_a_server_without_a_key(tmp_path: Path) -> None:
    """28."""
    for host in ("0.0.0.0", "::", "192.168.0.7", "box.example"):
        with pytest.raises(SettingsError, match="no key"):
            Access.of(host)
    for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"):
        assert Access.of(host).hosts
    (tmp_path / "keys").write_text(KEY)
    assert Access.of("0.0.0.0", tmp_path / "keys").hosts is None
    assert "box.example" in (Access.of("0.0.0.0", tmp_path / "keys", allowed_hosts=["Box.example"]).hosts or ())


@pytest.mark.parametrize("content", ["", "# nothing\n", "short", "two words here", "clé-é-é-é-é", "\xff"])
def test_a_file_without_good_keys_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "keys").write_bytes(content.encode("latin-1" if content == "\xff" else "utf-8"))
    with pytest.raises(SettingsError, match="key"):
        Access.of("127.0.0.1", tmp_path / "keys")
    with pytest.raises(SettingsError, match="cannot read"):
        Access.of("127.0.0.1", tmp_path / "none")


def test_each_answer_has_an_id_and_no_more_than_it_needs(guarded: Client) -> None:
    assert guarded.get("/v1/models", x_request_id="mine-1").headers["x-request-id"] == "mine-1"
    made = guarded.get("/v1/models", x_request_id="no spaces").headers["x-request-id"]
    assert re.fullmatch(r"req_[0-9a-f]{24}", made)
    refused = guarded.get("/v1/models", authorization="", x_request_id="mine-2")
    assert refused.headers["x-request-id"] == "mine-2"


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"{", {}, 400, "invalid_json"),
        (b"\xff", {}, 400, "invalid_json"),
        (b'{"a": NaN}', {}, 400, "invalid_json"),
        (b'{"a": 1e999}', {}, 400, "invalid_json"),
        (b'{"a": "\\ud800"}', {}, 400, "invalid_json"),
        (b"[" * 100_000, {}, 400, "invalid_json"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, {}, 400, "invalid_json"),
        (b'{"a": ' + b"1" * 5000 + b"}", {}, 400, "invalid_json"),
        (b"[]", {}, 400, None),
        (b"{}", {"content-type": "text/plain"}, 415, None),
        (b"{}", {"content-type": ""}, 415, None),
        (b"{}", {"content-type": "multipart/form-data; boundary=x"}, 415, None),
        (b" " * ((4 << 20) + 1), {}, 413, None),
        (b"{}", {"content-length": "99999999999"}, 413, None),
        (b"{}", {"content-length": "9" * 50}, 413, None),
    ],
)
def test_a_body_is_json_and_not_too_much(guarded: Client, body: bytes, headers: dict, status: int, code: str) -> None:
    found = guarded.post("/v1/chat/completions", body, **headers)
    assert found.status == status, found.text[:200]
    assert found.error["code"] == code


def test_what_is_not_routed_is_told_in_the_same_shape(guarded: Client) -> None:
    found = guarded.get("/v1/chat/completion")
    assert found.status == 404
    assert "/v1/chat/completions" in found.error["message"]
    found = guarded.get("/v1/chat/completions")
    assert found.status == 405
    assert found.headers["allow"] == "POST"
    assert found.error["type"] == "invalid_request_error"
    assert guarded.post("/v1/models/", {}).status in (404, 405)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read /home/ann/secret/adapter.safetensors: no", "cannot read adapter.safetensors: no"),
        ("'/srv/a b' and ~/runs/x", "'a b' and x"),
        (r"C:\Users\ann\x.json is wrong", "x.json is wrong"),
        ("ask at /v1, or org/name or 1/2", "ask at v1, or org/name or 1/2"),
    ],
)
def test_a_path_is_shown_by_its_last_part(text: str, shown: str) -> None:
    assert without_paths(text) == shown


_LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
_ANY = st.recursive(_LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=6), v, max_size=3))
_FIELDS = {
    "temperature": 0, "n": 1, "seed": 1, "stop": "a", "stream": False, "logprobs": None, "max_tokens": 2, "top_p": 1,
    "logit_bias": {"1": 1}, "response_format": {"type": "text"}, "tools": [], "tool_choice": "none", "afina": {},
    "messages": USER, "model": "one", "prompt": "a", "echo": True, "input": "a", "tokens": [1], "content": "a",
}  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from([route.path for route in ROUTES if route.body]),
    changed=st.dictionaries(st.sampled_from([*_FIELDS, "unknown"]), _ANY, max_size=3),
    kept=st.sets(st.sampled_from([*_FIELDS])),
)
def test_whatever_the_body_no_answer_is_a_fault_of_the_server(
    guarded: Client, path: str, changed: dict, kept: set[str]
) -> None:
    body = {name: _FIELDS[name] for name in kept} | {"model": "one", "max_tokens": 2} | changed
    content = json.dumps(body).encode()
    found = guarded.post(path, content, authorization=f"Bearer {ADMIN}")
    assert found.status < 500, (path, body, found.text)
    if found.status >= 400:
        assert found.error["message"]


def test_broken_adapters_are_404_and_no_models(tmp_path: Path) -> None:
    """No client asks again, and none is told the server's paths."""
    base = load_base(str(save_tiny(tmp_path / "tiny-llama")), precision="fp32", device="cpu")
    for name in ("good", "half"):
        made(tmp_path / "tiny-llama", tmp_path / "adapters" / name)
    weights = tmp_path / "adapters" / "half" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:999])
    with serving(base, [tmp_path / "adapters"]) as client:
        for _ in range(2):
            found = client.post("/v1/chat/completions", {"model": "half", "messages": USER, "max_tokens": 1})
            assert (found.status, found.json["error"]["code"]) == (404, "model_not_found")
            assert "the model 'half' cannot be used: adapter_model.safetensors is damaged" in found.text
        assert {each["id"] for each in client.get("/v1/models").json["data"]} == {base.facts.name, "good"}
        assert client.get("/v1/models/half").status == 404
