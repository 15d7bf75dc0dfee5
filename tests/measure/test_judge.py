"""The judge against small servers of this machine: fair, biased, broken, and none at all."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from afina.core.errors import InputError, SettingsError
from afina.core.events import Notice, Progress
from afina.measure import judge as module
from afina.measure.intervals import paired_difference
from afina.measure.judge import Judge, Judgement
from afina.measure.metric import Predictions, RowStats
from afina.measure.metrics import METRICS

QUESTIONS = ["q1", "q2", "q3", "q4"]
REFERENCES = [["r1"], ["r2", "other"], ["r3"], ["r4"]]
BASE = ["short", "the longer one", "same", "short"]
ADAPTED = ["the longer one", "short", "same ", "the longer one"]


@pytest.fixture(autouse=True)
def _no_key_no_pause(monkeypatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.0)
    for name in (*module.KEYS, "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


def parts(request: dict) -> tuple[str, str]:
    text = request["messages"][-1]["content"]
    return tuple(text.split(f"[Answer {x}]\n")[1].split("\n[End")[0] for x in "AB")


def longer(request: dict) -> str:
    a, b = parts(request)
    return "A" if len(a) > len(b) else "B"


def preferred(judged: Judgement) -> list[RowStats]:
    """The metric "judge" of the base and of the adapted model."""
    shares = (judged.base, judged.adapted)
    return [METRICS["judge"].stats(Predictions("chat", BASE, REFERENCES, preferred=share)) for share in shares]


@contextmanager
def server(says: Callable[[dict], object], **wrong: list[int]) -> Iterator[tuple[str, list]]:
    """A server that replies what `says` makes of a request (text, or bytes of the body), after the statuses `first`."""
    seen: list = []
    first = list(wrong.get("first", []))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers.get("Authorization"), request))
            status = first.pop() if first else 200
            found = says(request) if status == 200 else b"no luck"
            body = found if isinstance(found, bytes) else json.dumps({"choices": [{"message": {"content": found}}]})
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else body.encode())

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_port}", seen
        finally:
            http.shutdown()
            thread.join()


def compare(url: str, events: list | None = None) -> Judgement:
    listener = (events if events is not None else []).append
    return Judge(url, "tiny-judge").compare(QUESTIONS, REFERENCES, BASE, ADAPTED, listener)


def test_wins_are_counted_in_both_orders(monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    monkeypatch.setenv("AFINA_JUDGE_KEY", " secret ")
    events: list = []
    with server(longer) as (url, seen):
        found = compare(url, events)
    assert found.verdicts == ["adapted", "base", "tie", "adapted"]
    base, adapted = preferred(found)
    assert (base.score(), adapted.score()) == (1.5 / 4, 2.5 / 4)
    assert paired_difference(base, adapted).value == 0.25
    assert (found.unreadable, found.swayed) == (0, 0)
    assert len(seen) == 6  # nobody is asked about equal answers
    path, key, request = seen[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert (request["model"], request["temperature"]) == ("tiny-judge", 0)
    assert {parts(r) for _, _, r in seen} == {("short", "the longer one"), ("the longer one", "short")}
    text = next(r["messages"][-1]["content"] for _, _, r in seen if "q2" in r["messages"][-1]["content"])
    assert text.count("[Reference]") == 2
    assert events[-1] == Progress("replies of the judge", 6, 6)


def test_a_judge_that_prefers_a_position_finds_ties() -> None:
    events: list = []
    with server(lambda _: "A") as (url, seen):
        found = compare(f"{url}/v1", events)
    assert found.verdicts == ["tie"] * 4
    assert ([each.score() for each in preferred(found)], found.swayed) == ([0.5, 0.5], 3)
    assert any(isinstance(e, Notice) and "in 3 of 4 rows" in e.text for e in events)
    assert seen[0][1] is None


def test_a_win_and_a_tie_are_a_tie() -> None:
    with server(lambda request: "A" if parts(request)[0] == "short" else "TIE") as (url, _):
        found = compare(url)
    assert (found.verdicts, found.swayed, found.unreadable) == (["tie"] * 4, 0, 0)


def test_a_server_that_recovers() -> None:
    with server(longer, first=[503, 500, 429]) as (url, seen):
        assert compare(f"{url}/v1/chat/completions").verdicts == ["adapted", "base", "tie", "adapted"]
        assert len(seen) == 9


def test_unreadable_verdicts_are_ties_and_said() -> None:
    events: list = []
    with server(lambda request: "I like cats." if "q1" in request["messages"][-1]["content"] else longer(request)) as (
        url,
        _,
    ):
        found = compare(url, events)
    assert (found.verdicts, found.unreadable) == (["tie", "base", "tie", "adapted"], 2)
    assert any(isinstance(e, Notice) and e.warning and "2 replies" in e.text for e in events)


def test_how_verdicts_are_read() -> None:
    for reply, verdict in {
        "A": "A",
        " **b**.\n": "B",
        "[[A]]": "A",
        "tie": "TIE",
        "Answer B is better.": "B",
        "<think>A? B?</think>\n\nB": "B",
        "They say the same.\n\nFinal verdict: TIE": "TIE",
        "B\n\nA repeats itself.": "B",
        "A good answer": None,
        "A or B": None,
        "": None,
    }.items():
        assert module._read(reply) == verdict, reply


@pytest.mark.parametrize(
    ("says", "first", "said"),
    [
        (lambda _: b"<html>hello</html>", [], "did not answer in JSON: '<html>hello</html>'"),
        (lambda _: b'{"error": "odd"}', [], "did not answer as chat completions do"),
        (longer, [401] * 6, "no key was sent"),
        (longer, [404] * 6, "answers 404 Not Found: 'no luck'"),
        (longer, [302] * 6, "it is at http://127.0.0.1:1/elsewhere"),
        (longer, [500] * 24, "answers 500 Internal Server Error, 4 times: 'no luck'"),
    ],
)
def test_a_server_that_does_not_answer_as_it_should(says, first: list[int], said: str) -> None:
    with server(says, first=first) as (url, _), pytest.raises(InputError) as error:
        compare(url)
    assert said in str(error.value)


def test_the_key_that_is_refused_is_named_and_not_shown(monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with server(longer, first=[401] * 6) as (url, _), pytest.raises(InputError, match="OPENAI_API_KEY") as error:
        compare(url)
    assert "secret" not in str(error.value)


def test_nobody_there() -> None:
    with server(longer) as (url, _):
        pass
    with pytest.raises(InputError, match=r"cannot be reached.*refused"):
        compare(url)


def test_addresses(monkeypatch) -> None:
    for url in (
        "ftp://host",
        "localhost:8000",
        "file:///etc/passwd",
        "http://",
        "http://host:port",
        "http://a b",
        "http://[",
    ):
        with pytest.raises(SettingsError):
            Judge(url, "m")
    for url, whole in {
        "http://h:1/": "http://h:1/v1/chat/completions",
        "https://h/openai/v1/": "https://h/openai/v1/chat/completions",
        "https://h/x/chat/completions?version=1": "https://h/x/chat/completions?version=1",
    }.items():
        assert Judge(url, "m").url == whole
    monkeypatch.setenv("AFINA_JUDGE_KEY", "a\nb")
    with pytest.raises(SettingsError):
        Judge("http://h", "m")


@pytest.mark.parametrize(
    ("says", "first", "said"),
    [
        (lambda _: b"<html>hello</html>", [], "did not answer in JSON"),
        (longer, [401], "no key was sent"),
        (longer, [404], "check --judge and --judge-model"),
        (longer, [503], r"503 Service Unavailable: 'no luck'"),
    ],
)
def test_a_judge_is_tried_once_before_it_is_needed(says, first: list[int], said: str) -> None:
    with server(says, first=list(first)) as (url, seen), pytest.raises(InputError, match=said):
        Judge(url, "tiny-judge").check()
    assert len(seen) == 1


def test_a_judge_that_answers_is_only_warned_of_where_it_cannot_be_read() -> None:
    for reply, warnings in (("A", 0), ("TIE", 0), ("As a model I like both.", 1)):
        events: list = []
        with server(lambda _, reply=reply: reply) as (url, _):
            Judge(url, "tiny-judge").check(events.append)
        assert [e.warning for e in events] == [True] * warnings
    assert "As a model I like both." in events[0].text


def test_a_judge_that_is_away_is_found_before_the_models_are_loaded(tmp_path) -> None:
    """There is no run in the folder, which is said only where the judge is well."""
    from afina.jobs.evaluate import EvaluateSettings, evaluate

    def asked(url: str) -> str:
        with pytest.raises(InputError) as error:
            evaluate(EvaluateSettings(run=tmp_path, data=tmp_path / "no.jsonl", judge=url, judge_model="m"))
        return str(error.value)

    with server(longer) as (url, _):
        assert "no run" in asked(url) or "adapter" in asked(url)
    assert "cannot be reached" in asked(url)


@pytest.mark.parametrize(
    "url",
    ["http://judge.example/v1", "http://10.0.0.5:8000", "http://[2001:db8::1]:80", "http://localhost.evil.example"],
)
def test_a_key_is_not_sent_to_another_machine_in_the_clear(url: str, monkeypatch) -> None:
    for name in module.KEYS:
        monkeypatch.setenv(name, "secret")
        with pytest.raises(SettingsError, match="in the clear") as raised:
            Judge(url, "judge")
        assert "secret" not in str(raised.value)
        assert name in str(raised.value)
        Judge(url.replace("http:", "https:"), "judge")
        monkeypatch.delenv(name)
    Judge(url, "judge")  # nothing is sent that is secret


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "[::1]", "judge.localhost"])
def test_this_machine_may_get_the_key_and_no_proxy_does(host: str, monkeypatch) -> None:
    monkeypatch.setenv("AFINA_JUDGE_KEY", "secret")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    judge = Judge(f"http://{host}:8000", "judge")
    assert not any(type(each).__name__ == "ProxyHandler" and each.proxies for each in judge._opener.handlers)


def test_a_proxy_does_not_see_what_is_for_this_machine(monkeypatch) -> None:
    monkeypatch.setenv("AFINA_JUDGE_KEY", "secret")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # where nobody listens
    with server(longer) as (url, seen):
        Judge(url, "judge").check()
    assert seen[0][1] == "Bearer secret"
