"""`afina serve`: what it serves under which name, what it refuses, and the commands that ask a server."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from adapters_made import alone, made, run, text
from conftest import save_tiny, write_rows

import afina
from afina.core.errors import AdapterError, InputError, SettingsError, VerificationFailed
from afina.core.events import Notice
from afina.jobs.evaluate_served import EvaluateServedSettings, evaluate_served
from afina.jobs.generate_served import GenerateServedSettings, generate_served
from afina.jobs.serve import ServeSettings, prepared, serve
from afina.models import Base
from afina.serving.client import Client
from afina.serving.engine import Limits
from afina.serving.service import QueueFull


@pytest.fixture(scope="module")
def folders(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for i, name in enumerate(("one", "two")):
        made(tiny_folder, root / name / "adapter", i, facts={"kind": "classification", "data": {"prompt": "{q}"}})
    made(tiny_folder, root / "dora", 5, variant="dora", facts={})
    return root


@contextmanager
def served(**settings) -> Iterator:
    events: list = []
    service = prepared(ServeSettings(device="cpu", **settings), events.append)
    try:
        yield service, [event.text for event in events if isinstance(event, Notice)]
    finally:
        service.close()


def test_runs_are_models_by_their_folders_names(folders: Path, tiny: Base) -> None:
    with served(runs=(folders / "one", folders / "two" / "adapter")) as (service, said):
        assert [facts.id for facts in service.models()] == [tiny.facts.name, "one", "two"]
        assert all(facts.pinned for facts in service.models()[1:])
        prompt = tiny.tokenizer.encode("which one?")
        for name in ("one", "two"):
            found = run(text(service.open(name), prompt, 9))
            assert found.strip() == alone(tiny, folders / name / "adapter", prompt, 9)
    assert said[0] == "loading the base"
    assert any(line.startswith("one: rank 4, ") for line in said)
    assert any("ms with an adapter (" in line for line in said)  # complaint 24: what it costs
    assert any("computes in fp32 (as in training)" in line for line in said)


@pytest.mark.parametrize("name", ["one", "dora"])
def test_merged_it_is_the_only_model(folders: Path, tiny: Base, name: str) -> None:
    """Complaint 24: what can come with rows, and what cannot."""
    folder = folders / name
    with served(runs=(folder,), merge=name) as (service, said):
        assert [(facts.id, facts.parent) for facts in service.models()] == [(name, tiny.facts.name)]
        prompt = tiny.tokenizer.encode("which one?")
        adapter = folder / "adapter" if name == "one" else folder
        assert run(text(service.open(name), prompt, 9)).strip() == alone(tiny, adapter, prompt, 9)
    assert f"merging {name} into its base" in said


def test_a_merged_model_is_a_base(folders: Path, tmp_path: Path) -> None:
    from afina.jobs.adapters.merge import MergeAdapterSettings, merge

    merge(MergeAdapterSettings(run=folders / "one", out=tmp_path / "whole"))
    with served(runs=(tmp_path / "whole",)) as (service, _):
        assert [(facts.id, facts.parent) for facts in service.models()] == [("whole", None)]


def test_a_classifier_says_probabilities(tmp_path: Path, colours: Path) -> None:
    base = save_tiny(tmp_path / "bert", "bert")
    afina.train(
        afina.RunSettings(
            base=str(base), out=tmp_path / "labels", task="classify", precision="fp32", device="cpu",
            data={"path": colours, "prompt": "{q}", "completion": "{a}"}, train={"rows": 16},
        )
    )  # fmt: skip
    with served(runs=(tmp_path / "labels",)) as (service, _):
        handle = service.open("labels")
        assert handle.facts.labels == ("blue", "red")
        found = run(handle.classify([handle.tokenizer.encode_input(q) for q in ("a01", "b02", "a" * 40)]))
        service.engine.limits = Limits(max_batch=1, max_queue=1)

        async def crowd() -> list[Any]:
            free = threading.Event()
            service.engine.call(free.wait)
            asked = [asyncio.create_task(handle.classify([[5, 6]] * 20)) for _ in range(3)]
            await asyncio.sleep(0.05)
            asked[0].cancel()  # its client goes
            free.set()
            return await asyncio.gather(*asked, return_exceptions=True)

        gone, whole, refused = run(crowd())
        assert isinstance(gone, asyncio.CancelledError)
        assert len(whole) == 20
        assert isinstance(refused, QueueFull)
    assert [sum(each.values()) for each in found] == pytest.approx([1, 1, 1])
    assert [*found[0]] == ["blue", "red"]
    expected = afina.generate(afina.GenerateSettings(run=tmp_path / "labels", prompts=("a01", "b02"))).rows
    assert [max(each, key=each.__getitem__) for each in found[:2]] == [row["answer"] for row in expected]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "there is nothing to serve"),
        ({"runs": ("RUNS/none",)}, "no such folder"),
        ({"runs": ("RUNS/one", "RUNS/one")}, "would both be the model 'one'"),
        ({"runs": ("RUNS/one", "RUNS/dora")}, "cannot be in one batch with others"),
        ({"runs": ("RUNS/one",), "merge": "two"}, "is none of the models one"),
        ({"runs": ("RUNS/one", "RUNS/two"), "merge": "two"}, "can be served alone only"),
        ({"runs": ("RUNS/one",), "adapters": "RUNS/none"}, "no such folder"),
        ({"runs": ("RUNS/one",), "memory": "much"}, "'much' is no size such as 4GB"),
        ({"runs": ("RUNS/one",), "memory": "12"}, "greater than or equal to 1000000"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_listens(folders: Path, settings: dict, problem: str) -> None:
    def placed(value):
        if isinstance(value, tuple):
            return tuple(map(placed, value))
        return Path(value.replace("RUNS", str(folders))) if value.startswith("RUNS") else value

    with pytest.raises(InputError, match=problem):
        prepared(afina.core.config.build(ServeSettings, {name: placed(value) for name, value in settings.items()}))


def test_another_base_is_refused(folders: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", seed=7)
    with pytest.raises(AdapterError, match="was trained on the base"):
        prepared(ServeSettings(runs=(folders / "one",), base=str(other), device="cpu"))


def test_another_address_needs_a_key(folders: Path) -> None:
    """Complaint 28."""
    pytest.importorskip("starlette")
    with pytest.raises(SettingsError, match="there is no key"):
        serve(ServeSettings(runs=(folders / "one",), host="0.0.0.0"))


def test_an_address_that_is_taken_is_said_before_anything_is_loaded(folders: Path) -> None:
    http = pytest.importorskip("afina.serving.http.sockets", reason="needs afina[serve]")
    said: list = []
    with http.bind("127.0.0.1", 0) as held:
        held.listen()
        with pytest.raises(SettingsError, match=r"cannot listen on .* in use"):
            serve(ServeSettings(runs=(folders / "one",), port=held.getsockname()[1]), said.append)
    assert not said


def test_sizes_have_units() -> None:
    for given, expected in (("4GB", 4 * 10**9), ("512 MiB", 512 << 20), ("1.5gb", 15 * 10**8), ("2000000", 2 * 10**6)):
        assert ServeSettings(base="x", memory=given).memory == expected


@contextmanager
def at_address(**settings) -> Iterator[str]:
    """The address of a server in this process."""
    pytest.importorskip("starlette")
    from afina.serving import http

    said: list[str] = []
    apps: list = []
    with pytest.MonkeyPatch.context() as patch:
        make = http.make_app
        patch.setattr(http, "make_app", lambda *args, **more: apps.append(make(*args, **more)) or apps[-1])
        thread = threading.Thread(
            target=serve,
            args=(ServeSettings(port=0, device="cpu", **settings), lambda e: said.append(getattr(e, "text", ""))),
        )
        thread.start()
        until = time.monotonic() + 60
        while not any("listening" in line for line in said):
            time.sleep(0.01)
            assert thread.is_alive()
            assert time.monotonic() < until
    yield next(line for line in said if "listening" in line).split()[-1]
    apps[0].state.context.stopping = True
    thread.join(30)
    assert not thread.is_alive()


def test_commands_ask_a_server(folders: Path, tmp_path: Path, tiny: Base) -> None:
    """Complaint 4: `eval --url` compares who answered with the run's own weights."""
    rows = write_rows(tmp_path / "rows.jsonl", [{"q": f"q{i}", "a": "red" if i % 2 else "blue"} for i in range(12)])
    with at_address(runs=(folders / "one", folders / "two"), base=str(tiny.facts.path)) as url:
        assert {each.id for each in Client(url).models()} == {tiny.facts.name, "one", "two"}
        found = generate_served(
            GenerateServedSettings(url=url, run=Path("runs/one"), prompts=("hello", "you"), base_too=True)
        )
        assert [row["answer"] != row["base"] for row in found.rows] == [True, True]
        chat = tiny.tokenizer.encode(tiny.tokenizer.chat([{"role": "user", "content": "hello"}], True))
        assert found.rows[0]["base"][:20] == alone(tiny, None, chat, 64)[:20]
        with pytest.raises(InputError, match="there is no model 'three'"):
            generate_served(GenerateServedSettings(url=url, run=Path("three"), prompts=("hello",)))
        asked = EvaluateServedSettings(run=folders / "one", data=rows, url=url, references="a", limit=8)
        result = evaluate_served(asked)
        assert (result.rows, result.model, result.main_metric) == (8, "one", "accuracy")
        assert result.fingerprint.startswith(f"afina-{tiny.facts.sha256[:8]}-")
        assert set(result.base) == set(result.adapted)
        with pytest.raises(VerificationFailed, match="8 answers were written by afina-"):
            evaluate_served(asked.model_copy(update={"model": "two"}))
    with pytest.raises(InputError, match="cannot be reached"):
        Client(url).models()


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://x", "http://user@x"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="is not a URL"):
        Client(url)


def test_a_key_is_not_sent_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFINA_API_KEY", "secret-key")
    with pytest.raises(SettingsError, match="in the clear"):
        Client("http://example.org")
    assert Client("http://127.0.0.1:1")._headers["Authorization"] == "Bearer secret-key"


def test_a_redirect_is_not_followed_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFINA_API_KEY", "secret-key")
    asked: list[str] = []

    class Moved(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *args: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Moved) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with pytest.raises(InputError, match="302"):
            Client(f"http://127.0.0.1:{server.server_port}").models()
        thread.join()
    assert asked == ["/v1/models"]
