"""A chat on the page: its server comes and goes, answers come from it as they are written, preferences are kept."""

import asyncio
import json
import stat
import time
from collections.abc import Iterator
from html import escape
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from serving_client import USER, listening, serving
from starlette.requests import Request
from studio_opened import PT, Visitor, opened, tidy
from studio_works import forking

from afina.core.errors import InputError
from afina.core.files import read_jsonl, write_json
from afina.data.layouts import recognise
from afina.data.mapping import map_examples
from afina.data.rows import Notes
from afina.data.settings import DataSettings
from afina.models.load import Base
from afina.ui.studio.pages import chat
from afina.ui.studio.relay import Relayed, Server

HERE = "/runs/colours/chat"
HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"
_SOON = 60  # seconds in which a server is loaded on a busy machine


@pytest.fixture(scope="module")
def open_chat(coloured: Path) -> Iterator[Visitor]:
    """The page with the chat of `colours`, whose server is a process of its own."""
    with forking(), opened(coloured) as visitor:
        assert "Start the chat" in visitor.get(HERE).text
        assert visitor.fill(f"{HERE}/start", row="2").headers["location"] == f"{HERE}?row=2"
        loading = visitor.get(HERE, headers=PT).text
        assert "Os modelos estão sendo carregados." in loading
        assert 'http-equiv="refresh"' in loading
        until = time.monotonic() + _SOON
        while (now := visitor.get(f"{HERE}/state").json())["state"] == "loading":
            assert time.monotonic() < until
            time.sleep(0.05)
        assert now["state"] == "ready", visitor.studio.queue.all()[0].log
        yield visitor
        (work,) = visitor.studio.queue.all()
        assert visitor.fill(f"{HERE}/stop").headers["location"] == "/runs/colours"
        while visitor.studio.queue._started:
            assert time.monotonic() < until + _SOON
            time.sleep(0.05)
        assert work.state == "done"
        assert "Start the chat" in visitor.get(HERE).text
    tidy(coloured)


def asked(visitor: Visitor, **more: Any) -> Any:
    said = [{"role": "user", "content": "a07"}]
    return visitor.post(f"{HERE}/answer", json={"model": "colours", "messages": said, "temperature": "0", **more})


def test_both_answer_without_script(open_chat: Visitor) -> None:
    prompt = read_jsonl(open_chat.studio.workspace.run("colours") / "predictions.jsonl")[1]["prompt"]
    html = open_chat.get(f"{HERE}?row=2").text
    assert f">{prompt}</textarea>" in html
    assert html.index('data-model="tiny-llama"') < html.index('data-model="colours"')
    found = open_chat.fill(HERE, prompt="a07", temperature="0", seed="0")
    assert found.status_code == 200
    frames = asked(open_chat).text
    text = "".join(
        json.loads(line[6:])["choices"][0]["delta"].get("content", "")
        for line in frames.splitlines()
        if line.startswith("data: {")
    )
    assert text == "red"
    assert f'<p class="text" data-answer>{text}</p>' in found.text
    assert "Which is better?" in found.text
    assert open_chat.fill(HERE, prompt="a07", temperature="warm").status_code == 400


def test_an_answer_comes_as_the_server_writes_it(open_chat: Visitor) -> None:
    found = asked(open_chat, seed=3)
    assert found.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert found.text.startswith("data: {")
    assert found.text.endswith("data: [DONE]\n\n")
    unknown = asked(open_chat, model="nobody")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    for wrong in ({"messages": "hello"}, {"model": 3}, {"seed": "x"}, {"temperature": [1]}):
        assert asked(open_chat, **wrong).status_code == 400
    assert asked(open_chat, messages=[{"role": "nobody", "content": "x"}]).status_code == 400


def test_the_server_is_the_pages_alone(open_chat: Visitor) -> None:
    workspace = open_chat.studio.workspace
    assert stat.S_IMODE((workspace.own / "chat.key").stat().st_mode) == 0o600
    (work,) = open_chat.studio.queue.all()
    assert (work.heavy, work.settings["port"], open_chat.studio.queue.running) == (False, 0, None)
    port = int(work.address.rpartition(":")[2])
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/v1/models")
    assert connection.getresponse().status == 401
    connection.close()
    assert open_chat.fill(f"{HERE}/start").status_code == 303  # it is open
    assert open_chat.studio.queue.all() == [work]
    assert "in use" in open_chat.fill("/runs/colours/delete", sure="yes").text


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Visitor]:
    """A workspace with a run that nobody serves."""
    for name in ("colours", "other"):
        write_json(tmp_path / "workspace" / "runs" / name / "adapter" / "afina.json", {"data": {"system": "Be brief."}})
    with opened(tmp_path / "workspace", works=False) as visitor:
        yield visitor


def said(*turns: tuple[str, ...]) -> str:
    """What the page sends of a chat: of each turn the question, and the models' answers."""
    return json.dumps(
        [[prompt, [[f"model{i}", text] for i, text in enumerate(texts)], False] for prompt, *texts in turns]
    )


def test_what_is_better_is_kept_and_can_be_learned_from(closed: Visitor) -> None:
    kept = closed.studio.workspace.root / chat.PREFERENCES
    history = said(("a1", "red", HOSTILE), ("a2", "blue", "red", "blue"))
    shown = closed.fill(f"{HERE}/better", history=history, turn="0", chosen="1")
    assert shown.status_code == 200
    assert closed.post(f"{HERE}/better", json={"history": history, "turn": "1", "chosen": "0"}).status_code == 204
    first, second = read_jsonl(kept)  # what equals the chosen one is not rejected
    system, asked = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "a1"}

    def answer(text: str) -> dict[str, str]:
        return {"role": "assistant", "content": text}

    assert first == {
        "prompt": [system, asked], "chosen": [answer(HOSTILE)], "rejected": [answer("red")],
        "chosen_model": "model1", "rejected_model": "model0", "rejected_prompt": [system, asked],
    }  # fmt: skip
    next_one = {"role": "user", "content": "a2"}
    assert second["prompt"] == [system, asked, answer("red"), next_one]
    assert second["rejected_prompt"] == [system, asked, answer(HOSTILE), next_one]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert kept in closed.studio.workspace.data_files()
    assert recognise(list(first), [first, second]).name == "preference pairs, the chosen one learned"
    *_, last = (row for row in map_examples(DataSettings(path=kept), Notes(), needs_completion=True))
    assert (last.messages, last.completion, last.unlearned) == (tuple(second["prompt"]), "blue", (2,))


@pytest.mark.parametrize(
    "wrong",
    [
        {"chosen": "2"}, {"chosen": "-1"}, {"chosen": ""}, {"turn": "1"}, {"turn": ""}, {"turn": "²"},
        {"history": said((" ", "red", "blue"))}, {"history": "[]"}, {"history": "{"}, {"history": "[1, 2]"},
        {"history": '[["a1", [["a", 1], ["b", 2]], false]]'}, {"history": said(("a1", "red", "red"))}, {"history": ""},
        {"history": "[" * 5_000}, {"history": said(*[("a1", "red", "blue")] * 201)},
    ],
)  # fmt: skip
def test_what_is_no_preference_is_not_kept(closed: Visitor, wrong: dict[str, str]) -> None:
    fields = {"history": said(("a1", "red", "blue")), "turn": "0", "chosen": "0"} | wrong
    assert closed.fill(f"{HERE}/better", **fields).status_code == 400
    assert not (closed.studio.workspace.root / chat.PREFERENCES).exists()


def test_preferences_are_not_written_through_a_link(closed: Visitor, tmp_path: Path) -> None:
    (closed.studio.workspace.root / chat.PREFERENCES).symlink_to(tmp_path / "elsewhere")
    found = closed.fill(f"{HERE}/better", history=said(("a", "red", "blue")), turn="0", chosen="0")
    assert found.status_code == 400
    assert not (tmp_path / "elsewhere").exists()


def test_one_chat_is_open_at_a_time(closed: Visitor) -> None:
    closed.fill(f"{HERE}/start")
    (first,) = closed.studio.queue.all()
    assert closed.get(f"{HERE}/state").json()["state"] == "loading"
    assert "The chat of colours is open" in closed.get("/runs/other/chat").text
    closed.fill("/runs/other/chat/start", also="colours", alone="yes")
    assert first.state == "stopped"
    assert closed.get(f"{HERE}/state").json()["state"] == "none"
    second = next(work for work in closed.studio.queue.all() if work.id != first.id)
    runs = closed.studio.workspace.runs
    assert second.settings["runs"] == [str(runs / "other"), str(runs / "colours")]
    assert second.settings["merge"] == "other"
    assert closed.fill(f"{HERE}/start", also="../x").status_code == 400
    assert closed.fill(HERE, prompt="a").status_code == 400
    assert asked(closed).status_code == 400
    closed.fill("/runs/other/chat/stop")
    assert second.state == "stopped"


def test_a_server_that_failed_says_why(closed: Visitor) -> None:
    closed.fill(f"{HERE}/start")
    (work,) = closed.studio.queue.all()
    told = {"kind": "AdapterError", "problems": [f"it {HOSTILE} cannot"], "remedy": "merge it"}
    write_json(work.folder / "error.json", told)
    html = closed.get(HERE).text
    assert "it &lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m\\u202e cannot" in html
    assert 'name="alone"' in html


def ready(closed: Visitor, monkeypatch: pytest.MonkeyPatch, told: list[Any]) -> list[Any]:
    """A server that says what it is `told` to say; what it was asked."""
    closed.fill(f"{HERE}/start")
    (work,) = closed.studio.queue.all()
    line = json.dumps({"event": "notice", "text": "listening at http://127.0.0.1:1", "warning": False})
    (work.folder / "process.json").write_text("{}")
    (work.folder / "events.jsonl").write_text(f"{line}\n")
    monkeypatch.setattr("afina.ui.studio.work.Work.state", "running")
    heard: list[Any] = []

    async def say(self: Server, request: Request, path: str, bodies: list[Any]) -> list[Any]:
        heard.append((path, bodies))
        return [told.pop(0) for _ in bodies]

    monkeypatch.setattr(Server, "told", say)
    return heard


def test_a_classifier_says_how_sure_it_is(closed: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"data": [{"id": "colours", "parent": "bert", "afina": {"labels": ["blue", "red"]}}]}
    found = {"data": [{"index": 0, "label": "red", "probabilities": {"blue": 0.125, "red": 0.875}}]}
    heard = ready(closed, monkeypatch, [models, found])
    html = closed.fill(HERE, prompt="a07").text
    assert heard[1] == ("/v1/classify", [{"model": "colours", "input": "a07"}])
    assert "87.5 %" in html
    assert "data-chat" not in html


def test_all_are_asked_the_same_as_in_training(closed: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"data": [{"id": "b", "parent": None, "afina": {}}, {"id": "colours", "parent": "b", "afina": {}}]}
    answer = {"choices": [{"message": {"content": HOSTILE}, "finish_reason": "length"}]}
    heard = ready(closed, monkeypatch, [models, answer, answer])
    html = closed.fill(HERE, prompt="a07", seed="5", temperature="0,5").text
    system = {"role": "system", "content": "Be brief."}
    expected = {
        "messages": [system, {"role": "user", "content": "a07"}],
        "max_tokens": 64,
        "temperature": 0.5,
        "seed": 5,
    }
    assert heard[1][1] == [{"model": name} | expected for name in ("b", "colours")]
    history = json.dumps([["a07", [["b", HOSTILE], ["colours", HOSTILE]], False]])
    assert f'name="history" value="{escape(history)}"' in html.replace("&#34;", "&quot;")
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m\\u202e</p>") == 2
    assert "Cut off" in html
    assert "data-better" in html
    refused = {"error": {"message": "the context is too short"}}
    heard = ready(closed, monkeypatch, [models, answer, refused])
    assert "the context is too short" in closed.fill(HERE, prompt="a07").text


def asking(receive: Any) -> Request:
    return Request({"type": "http", "method": "POST", "headers": [], "path": "/", "query_string": b""}, receive)


def test_each_goes_on_from_its_own_answers(closed: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"data": [{"id": "b", "parent": None, "afina": {}}, {"id": "colours", "parent": "b", "afina": {}}]}
    answer = {"choices": [{"message": {"content": "violet"}, "finish_reason": "stop"}]}
    heard = ready(closed, monkeypatch, [models, answer, answer, models])
    before = json.dumps(
        [["a07", [["b", "<b>"], ["colours", "red"]], False], ["a08", [["b", ""], ["colours", "blue"]], False]]
    )
    html = closed.fill(HERE, prompt="a09", history=before).text
    roles = [[(each["role"], each["content"]) for each in body["messages"]] for body in heard[1][1]]
    asked = [("user", f"a0{i}") for i in (7, 8, 9)]
    system = ("system", "Be brief.")
    assert roles[0] == [system, asked[0], ("assistant", "<b>"), asked[2]]  # it gave no answer to the second
    assert roles[1] == [system, asked[0], ("assistant", "red"), asked[1], ("assistant", "blue"), asked[2]]
    assert html.count("data-better") == 4  # of three turns, the last without a choice, and of one to come
    assert html.count("data-better hidden") == 2
    assert f'href="{HERE}" data-anew>' in html
    kept = closed.fill(f"{HERE}/better", history=before, turn="0", chosen="1").text
    assert ">Kept in preferences.jsonl.</p>" in kept
    assert "a08" in kept


def test_who_leaves_ends_what_is_written_for_them(tiny: Base) -> None:
    with serving(tiny) as client, listening(client) as (port, _):
        step = client.service.engine.batcher.step
        client.service.engine.batcher.step = lambda: time.sleep(0.05) or step()  # 20 s, where nobody ends it
        body = {"model": tiny.facts.name, "messages": USER, "max_tokens": 400, "min_tokens": 400, "stream": True}
        sent: list[dict[str, Any]] = []

        async def ask() -> None:
            left = asyncio.Event()

            async def receive() -> dict[str, Any]:
                await left.wait()
                return {"type": "http.disconnect"}

            async def send(message: dict[str, Any]) -> None:
                sent.append(message)
                if len(sent) == 3:
                    left.set()

            exchange = await Server(port, "none").ask("/v1/chat/completions", body)
            await Relayed(asking(receive), exchange)({"type": "http"}, receive, send)

        asyncio.run(ask())
        assert sent[0]["status"] == 200
        assert len(sent) < 100
        until = time.monotonic() + 20
        while not client.service.metrics().cancelled.value():
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_server_that_goes_is_told(tiny: Base) -> None:
    async def never() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def answered(server: Server) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await Relayed(asking(never), await server.ask("/v1/models"))({"type": "http"}, never, send)
        return sent

    async def breaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, said: bytes) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        await writer.drain()
        writer.close()

    async def both() -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 99\r\n\r\ndata: {}\n\n"
        for said, statuses in ((head, [200]), (b"", [502]), (b"nonsense\r\n\r\n", [502])):
            taken = await asyncio.start_server(lambda r, w, said=said: breaks(r, w, said), "127.0.0.1", 0)
            async with taken:
                port = taken.sockets[0].getsockname()[1]
                sent = await answered(Server(port, "k"))
                with pytest.raises(InputError, match="has ended"):
                    await Server(port, "k").told(asking(never), "/v1/models", [None])
            assert [each["status"] for each in sent if "status" in each] == statuses
            assert b"the server of the chat has ended" in sent[-1]["body"]
        with pytest.raises(InputError, match="has ended"):
            await Server(port, "k").ask("/v1/models")

    asyncio.run(both())
