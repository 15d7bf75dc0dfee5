"""The queue of work: its order, its end by stops, kills and faults, and that its state is in files alone."""

import asyncio
import json
import os
import re
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from starlette.requests import Request
from studio_opened import Visitor, opened
from studio_works import gone, until

from afina.core.errors import InputError, SettingsError
from afina.core.events import Done, Notice, Progress, Step, row
from afina.core.files import write_json
from afina.ui.studio import work as works
from afina.ui.studio.pages.work import _frames
from afina.ui.studio.view import Call
from afina.ui.studio.work import Queue, Work

pytestmark = pytest.mark.usefixtures("forked_work")


class Waiting:
    """Pieces of the work `wait` by name, each with the file that says what it is to do."""

    def __init__(self, root: Path) -> None:
        self.root, self.works = root, {}
        (root / ".studio" / "work").mkdir(parents=True)
        self.queue = Queue(root / ".studio" / "work")

    def add(self, name: str) -> Work:
        self.works[name] = self.queue.add("wait", {"file": self.root / name}, name)
        return self.works[name]

    def tell(self, name: str, what: str) -> None:
        part = self.root / f"{name}.part"
        part.write_text(what)
        part.rename(self.root / name)

    def until(self, name: str, state: str) -> Work:
        work = self.works[name]
        until(lambda: self.queue.look() or work.state == state, f"{name} is {work.state}, not {state}: {work.log}")
        return work


@pytest.fixture
def waiting(tmp_path: Path) -> Waiting:
    return Waiting(tmp_path / "workspace")


@pytest.fixture
def page(tmp_path: Path):
    with opened(tmp_path / "workspace", works=False) as visitor:
        yield visitor


def test_one_heavy_job_at_a_time_in_the_order_of_asking(waiting: Waiting) -> None:
    first, second, third = (waiting.add(name) for name in "abc")
    waiting.until("a", "running")
    for _ in range(3):
        waiting.queue.look()
    assert [each.state for each in (first, second, third)] == ["running", "waiting", "waiting"]
    assert waiting.queue.running == first
    assert waiting.queue.waiting == [second, third]
    light = waiting.queue.add("models show", {"name": "starter"})
    until(lambda: light.ended)
    waiting.tell("a", "go")
    waiting.until("a", "done")
    waiting.until("b", "running")
    assert (third.state, waiting.queue.waiting) == ("waiting", [third])
    assert first.result["steps"] > 0
    assert waiting.queue.of("a", ("wait",)) == first
    assert waiting.queue.of("a", ("train",)) is None


def test_forecasts_do_not_disturb_each_other(waiting: Waiting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(works, "FORECASTS", {"models list"})
    waiting.add("a")
    first, second = (waiting.queue.add("models list", {}) for _ in range(2))
    assert waiting.queue._is_running(first)
    assert second.state == "waiting"
    until(lambda: waiting.queue.look() or second.ended)
    assert (first.state, second.state) == ("done", "done")
    assert (
        json.loads((second.folder / "process.json").read_text())["began"]
        > (first.folder / "result.json").stat().st_mtime - 1
    )


def test_what_is_wrong_with_settings_is_said_before_it_is_queued(waiting: Waiting) -> None:
    with pytest.raises(SettingsError, match="file"):
        waiting.queue.add("wait", {})
    with pytest.raises(SettingsError, match="no job 'weight'"):
        waiting.queue.add("weight", {})
    assert not waiting.queue.all()


def test_stopping_what_waits_takes_it_out(waiting: Waiting) -> None:
    waiting.add("a")
    waiting.add("b")
    waiting.queue.stop(waiting.works["b"])
    assert waiting.works["b"].state == "stopped"
    waiting.tell("a", "go")
    waiting.until("a", "done")
    waiting.queue.look()
    assert waiting.queue.running is None
    assert not (waiting.works["b"].folder / "process.json").exists()


def test_a_stop_waits_until_nothing_is_lost_and_a_second_one_does_not(waiting: Waiting) -> None:
    work = waiting.add("a")
    waiting.until("a", "running")
    until(lambda: len(work.events()) > 0)
    assert not work.stopping
    waiting.queue.stop(work)
    waiting.until("a", "stopped")
    assert work.error["problems"] == ["stopped where nothing is lost"]
    assert not work.stopping
    waiting.tell("b", "hang")
    work = waiting.add("b")
    waiting.until("b", "running")
    until(lambda: len(work.events()) > 0)
    waiting.queue.stop(work)
    assert work.stopping
    seen = len(work.events())
    until(lambda: len(work.events()) > seen + 5)
    assert work.state == "running"
    waiting.queue.stop(work)  # the second click of two
    seen = len(work.events())
    until(lambda: len(work.events()) > seen + 5)
    os.utime(work.folder / "stopping", (1, 1))
    waiting.queue.stop(work)
    waiting.until("b", "stopped")
    assert work.error["problems"] == ["interrupted"]
    waiting.queue.stop(work)  # nothing is there any more


def test_what_has_not_told_who_it_is_can_be_stopped(waiting: Waiting, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SimpleNamespace(Popen=lambda *_, **__: subprocess.Popen(["sleep", "600"]), DEVNULL=None)
    monkeypatch.setattr(works, "subprocess", slow)
    work = waiting.add("a")
    assert (work.state, waiting.queue.running) == ("waiting", work)
    process = waiting.queue._started[work.id]
    waiting.queue.stop(work)
    assert work.state == "stopped"
    assert process.wait() < 0


def test_a_process_that_ends_before_it_begins_has_failed(waiting: Waiting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        works, "subprocess", SimpleNamespace(Popen=lambda *_, **__: subprocess.Popen(["false"]), DEVNULL=None)
    )
    work = waiting.add("a")
    waiting.until("a", "failed")
    assert work.error["problems"] == ["its process ended with code 1 before it began"]


def test_killed_it_died(waiting: Waiting) -> None:
    work = waiting.add("a")
    waiting.until("a", "running")
    process = work.process
    assert process
    process.kill()
    waiting.until("a", "died")
    assert work.ended
    waiting.add("b")  # nobody waits for the dead
    waiting.until("b", "running")


def test_a_process_that_got_its_number_is_not_it(waiting: Waiting, monkeypatch: pytest.MonkeyPatch) -> None:
    work = waiting.add("a")
    waiting.until("a", "running")
    told = json.loads((work.folder / "process.json").read_text())
    write_json(work.folder / "process.json", told | {"began": told["began"] - 3600})
    assert work.state == "running"  # the clock was set: the lock says that it lives
    monkeypatch.setattr(works, "locked_by_another", lambda path: None)  # a file system without locks
    assert work.state == "died"
    write_json(work.folder / "process.json", told)
    assert work.state == "running"
    monkeypatch.undo()
    pid = work.process.pid
    work.process.kill()
    until(lambda: gone(pid))
    ours = psutil.Process()
    damaged = ([], {"pid": "x"}, {"pid": -1, "began": 0}, {"pid": 2**70, "began": 0})
    for other in ({"pid": ours.pid, "began": ours.create_time()}, *damaged):
        write_json(work.folder / "process.json", other)
        assert work.state == "died"


def test_a_new_server_sees_the_same_and_goes_on(waiting: Waiting) -> None:
    first = waiting.add("a")
    waiting.add("b")
    waiting.until("a", "running")
    again = Queue(waiting.queue.folder)
    assert [(each.id, each.state) for each in again.all()] == [(each.id, each.state) for each in waiting.queue.all()]
    assert (again.running, again.waiting) == (first, [waiting.works["b"]])
    again.look()
    assert waiting.works["b"].state == "waiting"
    waiting.queue = again
    waiting.tell("a", "go")
    waiting.until("a", "done")
    waiting.until("b", "running")


def test_two_processes_do_not_do_the_same_work(waiting: Waiting) -> None:
    """As where a server was killed right after it had started one, and the next one started another."""
    work = waiting.add("a")
    another = Queue(waiting.queue.folder)
    another._start(work)
    waiting.until("a", "running")
    waiting.tell("a", "go")
    waiting.until("a", "done")
    until(
        lambda: all(
            process.poll() is not None for queue in (waiting.queue, another) for process in queue._started.values()
        )
    )
    assert [event.done for event in work.events()] == [*range(1, work.result["steps"] + 1)]


@pytest.mark.parametrize(("what", "problem"), [("fail", "it <failed>"), ("crash", "unexpected ValueError: a bug")])
def test_what_went_wrong_is_told(what: str, problem: str, waiting: Waiting, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # for the trace of the crash
    work = waiting.add("a")
    waiting.tell("a", what)
    waiting.until("a", "failed")
    assert work.error["problems"][0].startswith(problem)
    assert work.error["remedy"]
    assert work.log.startswith("it begins\n")


def test_the_page_of_failed_work_shows_problem_remedy_and_log(page: Visitor) -> None:
    work = page.studio.queue.add("train", {"base": "x", "data": {"path": "rows.csv"}}, "first")
    write_json(work.folder / "error.json", {"kind": "InputError", "problems": ["it <failed>"], "remedy": "mend `it`"})
    (work.folder / "log").write_bytes(b"x" * 9_000 + b"the <last> line\n\xff\x1b[0m")
    text = page.get(f"/work/{work.id}").text
    for shown in ("it &lt;failed&gt;", "mend <code>it</code>", "the &lt;last&gt; line", r"\x1b[0m"):
        assert shown in text
    assert "x" * 5_000 not in text
    assert 'action="/runs/first/resume"' in text


def test_pages_of_each_state(page: Visitor) -> None:
    queue = page.studio.queue
    work = queue.add("train", {"base": "x", "data": {"path": "rows.csv"}}, "first")
    assert "one heavy job runs at a time" in page.get(f"/work/{work.id}").text
    assert page.fill(f"/work/{work.id}/stop").headers["location"] == f"/work/{work.id}"
    assert work.state == "stopped"
    (page.studio.workspace.runs / "first").mkdir()
    stopped = page.get(f"/work/{work.id}").text
    assert 'href="/runs/first"' in stopped
    page.fill("/runs/first/resume")
    assert (queue.all()[0].job, queue.all()[0].about) == ("train --resume", "first")
    died = queue.add("train", {"base": "x", "data": {"path": "rows.csv"}}, "second")
    write_json(died.folder / "process.json", {"pid": os.getpid(), "began": 1})
    assert "without a word" in page.get(f"/work/{died.id}").text
    assert page.get("/work/0000000000000-abcdef").status_code == 400
    assert "afina train rows.csv --base x" in page.get(f"/work/{work.id}").text


def test_what_failed_before_it_had_a_folder_begins_again_once(page: Visitor) -> None:
    queue = page.studio.queue
    work = queue.add("train", {"base": "x", "data": {"path": "rows.csv"}}, "first")
    write_json(work.folder / "error.json", {"kind": "SettingsError", "problems": ["it is wrong"], "remedy": ""})
    again = page.fill("/runs/first/resume").headers["location"]
    assert page.fill("/runs/first/resume").headers["location"] == again != f"/work/{work.id}"
    assert (queue.all()[0].job, queue.all()[0].settings) == ("train", work.settings)
    assert len(queue.all()) == 2
    assert page.fill("/runs/none/resume").status_code == 400


def test_what_has_ended_is_not_looked_at_again(waiting: Waiting, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        waiting.queue.stop(waiting.add(name))
    waiting.add("d")
    waiting.until("d", "running")
    waiting.queue.look()
    looked = list[Path]()
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path, **more: looked.append(path) or exists(path, **more))
    waiting.queue.look()
    assert {path.parent for path in looked} == {waiting.works["d"].folder}


def test_damaged_records_are_left_out_and_old_ones_go(waiting: Waiting, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, content in enumerate(('{"job": "none", "about": "", "settings": {}}', "{", "[]", '{"job": "wait"}')):
        folder = waiting.queue.folder / f"000000000000{i}-abcdef"
        folder.mkdir()
        (folder / "work.json").write_text(content)
    assert waiting.queue.all() == []
    waiting.queue.look()
    with pytest.raises(InputError, match="there is no work"):
        waiting.queue["0000000000000-abcdef"]
    monkeypatch.setattr(works, "_KEPT", 2)
    for name in "abc":
        waiting.queue.stop(waiting.add(name))
        time.sleep(0.002)
    waiting.add("d")
    waiting.queue.look()
    assert [each.about for each in waiting.queue.all()] == ["d", "c", "b"]


def test_events_are_read_line_by_line_as_they_grow(waiting: Waiting) -> None:
    work = waiting.add("a")
    waiting.queue._started.clear()
    (folder := waiting.root / "other").mkdir()
    work = Work(folder)
    write_json(folder / "work.json", {"job": "wait", "about": "", "settings": {}})
    assert work.events() == []
    with (folder / "events.jsonl").open("w") as file:
        file.write('{"event": "notice", "text": "one"}\n{"event": "progress", "stage": "x", "do')
        file.flush()
        assert work.events() == [Notice("one")]
        file.write('ne": 1, "total": 2}\n{"event": "none"}\nnonsense\n{"event": "notice", "text": "two"}\n')
        file.flush()
        assert work.events() == [Notice("one"), Progress("x", 1, 2), Notice("two")]
    write_json(folder / "result.json", {})
    assert work.events() == [Notice("one"), Progress("x", 1, 2), Notice("two")]


def _stream(text: str) -> list[dict[str, str]]:
    begin, text = text.split("\n\n", 1)
    assert begin == "retry: 1000"
    return [dict(line.split(": ", 1) for line in frame.split("\n")) for frame in text.split("\n\n") if frame]


def test_events_resume_after_the_last_one_that_was_seen(page: Visitor) -> None:
    work = page.studio.queue.add("models list", {})
    lines = [b'{"event": "notice", "text": "%d"}\n' % i for i in range(3)]
    (work.folder / "events.jsonl").write_bytes(b"".join(lines[:2]) + b'{"event"')
    write_json(work.folder / "result.json", {})
    found = page.get(f"/work/{work.id}/events")
    assert found.headers["content-type"].startswith("text/event-stream")
    first, state = _stream(found.text)
    assert first == {"id": str(len(lines[0] + lines[1])), "event": "news", "data": lines[1].decode().strip()}
    assert state == {"event": "state", "data": "done"}
    (work.folder / "events.jsonl").write_bytes(b"".join(lines))
    resumed = page.get(f"/work/{work.id}/events", headers={"last-event-id": first["id"]})
    assert [each.get("data") for each in _stream(resumed.text)] == [lines[2].decode().strip(), "done"]
    last = {"last-event-id": _stream(resumed.text)[0]["id"]}
    assert _stream(page.get(f"/work/{work.id}/events", headers=last).text) == [state]
    for odd in ("-1", "x", "9" * 30, "²", "99999"):
        assert (
            _stream(page.get(f"/work/{work.id}/events", headers={"last-event-id": odd.encode("latin-1")}).text)[-1]
            == state
        )


def test_events_come_while_it_runs(page: Visitor) -> None:
    """And after them the end, whenever it came."""
    work = page.studio.queue.add("models list", {})

    async def disconnect() -> Any:
        await asyncio.Event().wait()

    async def listen() -> list[str]:
        request = Request({"type": "http", "headers": []}, disconnect)
        frames = _frames(Call(page.studio, request, {}), work, 0)
        assert await anext(frames) == b"retry: 1000\n\n"
        found = [await anext(frames)]
        for text in ("one", "two"):
            with (work.folder / "events.jsonl").open("a") as file:
                file.write(f'{{"event": "notice", "text": "{text}"}}\n')
            found.append(await anext(frames))
        with (work.folder / "events.jsonl").open("a") as file:
            file.write('{"event": "notice", "text": "three"}\n')
        write_json(work.folder / "result.json", {})
        return [frame.decode() for frame in [*found, *[each async for each in frames]]]

    found = asyncio.run(listen())
    assert [re.search("data: (.*)", frame)[1] for frame in found] == [
        "waiting",
        '{"event": "notice", "text": "one"}',
        '{"event": "notice", "text": "two"}',
        '{"event": "notice", "text": "three"}',
        "done",
    ]


def _told(work: Work, *events: Any) -> None:
    (work.folder / "events.jsonl").write_text("".join(f"{json.dumps(row(each))}\n" for each in events))


def _step(number: int, loss: float = 1.0) -> Step:
    return Step(number, 10, 1.0, loss, 1e-3, 1.0, 100.0, 1.0, 1.0, 90.0 - 9 * number)


def test_the_last_stages_are_named_in_place_of_the_time_left(page: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    work = page.studio.queue.add("train", {"data": {"path": "x.csv"}}, "x")
    write_json(work.folder / "process.json", {"pid": 1, "began": 1.0})
    monkeypatch.setattr(Work, "process", property(lambda self: psutil.Process()))
    end = [_step(10), Done(10, "completed", 9.0, 90, 10.0, 1.0)]
    for events, told in [
        ([_step(9)], "It runs. About 9 s left."), ([_step(10)], "It runs. The last look at the rows kept apart"),
        ([*end, Progress("loading the saved adapter", 0, 0)], "It runs. The saved files are verified."),
        ([*end, Progress("answers of the base model", 3, 30)], "It runs. The base answers the rows kept apart."),
        ([*end, Progress("losses of the base model", 0, 0)], "It runs. It is checked what was forgotten"),
    ]:  # fmt: skip
        _told(work, *events)
        work.__dict__.pop("_told", None)
        html = page.get(f"/work/{work.id}").text
        assert told in " ".join(re.sub(r"<[^>]+>", "", html).split())
        assert ("value=" in html.partition("<progress")[2].partition(">")[0]) == ("9 s" in told or "base ans" in told)


def test_a_resumed_training_shows_its_past(page: Visitor) -> None:
    run = page.studio.workspace.runs / "x"
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row(_step(i, 2.0)))}\n" for i in range(1, 9)))
    work = page.studio.queue.add("train --resume", {"run": str(run)}, "x")
    _told(work, _step(6), _step(7))
    html = page.get(f"/work/{work.id}").text
    assert len(html.partition('class="a" points="')[2].partition('"')[0].split()) == 7
    assert "<dd>1.714</dd>" in html  # the mean of five and two, as the curve has it


def test_what_waits_and_serves_stands_at_the_head(page: Visitor) -> None:
    queue = page.studio.queue
    served, chat = queue.add("serve", {"runs": ["x"]}, "x"), queue.add("serve", {"runs": ["y"]}, "y/chat")
    waits = queue.add("train", {"data": {"path": "x.csv"}}, "z")
    head = page.get("/busy?at=/data").text
    for each in ('"/ship/x#serve"', '"/runs/y/chat"', '"/runs#waiting">1 waiting', 'name="back" value="/data"'):
        assert each in head
    assert "/ship/x#serve" not in page.get("/busy?at=/ship/x").text
    assert f'<li><a href="/work/{waits.id}">' in page.get("/runs").text
    assert page.fill(f"/work/{served.id}/stop", back="/data?x=1").headers["location"] == "/data?x=1"
    for bad in ("//a.b", "/\\a.b", "http://a.b", ""):
        assert page.fill(f"/work/{chat.id}/stop", back=bad).headers["location"] == f"/work/{chat.id}"
