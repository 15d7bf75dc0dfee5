"""The workspace: names, links that lead out of it, files that are brought, and what only its user may read."""

import asyncio
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from studio_opened import Visitor, opened

from afina.core.errors import InputError, OutputError
from afina.ui.studio.pages import data as data_page
from afina.ui.studio.workspace import Workspace

BYTES = {"content-type": "application/octet-stream"}


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    made = Workspace(tmp_path / "workspace")
    yield made
    made.close()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Visitor]:
    with opened(tmp_path / "workspace", works=False) as visitor:
        yield visitor


@pytest.mark.parametrize("name", ["a", "ação.csv", "a b-c_d.1.csv", "日本.jsonl", "x" * 120])
def test_plain_names_are_taken(name: str) -> None:
    assert Workspace.checked_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".a", "a/b", "/a", "a\\b", "a:b", "C:a", "a\0", "a\n", "a\x1b", "a\u202e", " a", "a ",
     "a\u2028", "*", "a?", 'a"', "<a>", "a|b", "x" * 121, "é" * 61, "\udcff"],
)  # fmt: skip
def test_other_names_are_not(name: str) -> None:
    with pytest.raises(InputError, match="is no name for a file"):
        Workspace.checked_name(name)


def test_it_lists_files_of_examples_alone(workspace: Workspace) -> None:
    for name in ("b.csv", "data/a.jsonl", "data/c.csv.gz", "data/d.exe", "data/.e.csv", "notes.md", "data/f"):
        (workspace.root / name).write_text("a,b\n")
    (workspace.data / "folder.csv").mkdir()
    assert [path.name for path in workspace.data_files()] == ["a.jsonl", "b.csv", "c.csv.gz"]
    (workspace.data / "b.csv").write_text("c,d\n")
    assert workspace.data_file("b.csv") == workspace.data / "b.csv"
    for name in ("d.exe", "../b.csv", "folder.csv", "", "data/a.jsonl"):
        with pytest.raises(InputError, match="there is no file"):
            workspace.data_file(name)


def test_no_link_leads_to_a_run_or_a_file_outside(workspace: Workspace, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "run").mkdir(parents=True)
    (outside / "rows.csv").write_text("a,b\n")
    (workspace.data / "rows.csv").symlink_to(outside / "rows.csv")
    (workspace.runs / "one").symlink_to(outside / "run")
    (workspace.runs / "sweep").symlink_to(outside)
    (workspace.runs / "own" / "lora").mkdir(parents=True)
    assert workspace.data_files() == []
    assert workspace.run("own/lora") == workspace.runs / "own" / "lora"
    assert workspace.run_name(workspace.runs / "own" / "lora") == "own/lora"
    for name in ("one", "sweep/run", "..", "own/../own", "own//lora", "/own", "own/", "", "none", ".", "own/."):
        with pytest.raises(InputError):
            workspace.run(name)
    with pytest.raises(ValueError, match="subpath"):
        workspace.run_name(outside)


def test_new_names_are_nobody_elses(workspace: Workspace) -> None:
    (workspace.data / "a.tar.csv").write_text("")
    (workspace.data / "a-2.tar.csv").symlink_to("nowhere")
    (workspace.root / "b.csv").write_text("")
    with workspace.new_data_file("b.csv") as beside:
        assert beside == workspace.data / "b-2.csv"
    with workspace.new_data_file("a.tar.csv") as first, workspace.new_data_file("a.tar.csv") as second:
        assert (first.name, second.name) == ("a-3.tar.csv", "a-4.tar.csv")
    with workspace.new_data_file("a.tar.csv") as again:
        assert again == first
    (workspace.runs / "run").mkdir()
    assert workspace.new_folder(workspace.runs, "run").name == "run-2"
    with pytest.raises(InputError), workspace.new_data_file("../a.csv"):
        pass


def test_readings_are_kept_by_file(workspace: Workspace) -> None:
    assert workspace.reading("a.csv") == {}
    workspace.keep_reading("a.csv", {"prompt": "{q}"})
    assert workspace.reading("a.csv") == {"prompt": "{q}"}
    (workspace.own / "data" / "a.csv.json").write_text("[]")
    assert workspace.reading("a.csv") == {}
    for name in ("../a", "a/b"):
        with pytest.raises(InputError):
            workspace.keep_reading(name, {})


def test_the_secret_lasts_and_is_its_users_alone(workspace: Workspace) -> None:
    secret = workspace.secret()
    file = workspace.own / "secret"
    assert (len(secret), workspace.secret()) == (32, secret)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (workspace.own, file)] == [0o700, 0o600]
    file.write_bytes(b"")  # as a full disk leaves it
    assert len(made := workspace.secret()) == 32
    assert made != secret
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_one_page_at_a_time(workspace: Workspace) -> None:
    secret = workspace.secret()
    with pytest.raises(OutputError, match="another page is open"):
        Workspace(workspace.root)
    workspace.close()
    again = Workspace(workspace.root)
    assert again.secret() == secret
    again.close()


def test_where_nothing_can_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        Workspace(tmp_path / "file")


def _brought(page: Visitor) -> list[str]:
    return sorted(os.listdir(page.studio.workspace.data))


def _upload(page: Visitor, name: str, content: Any) -> Any:
    return page.post(f"/upload/{name}", content=content, headers=BYTES)


def test_a_file_is_there_once_it_is_whole(page: Visitor) -> None:
    found = _upload(page, "a%20ção.csv", iter([b"a,b\n", b"1,2\n"]))
    assert found.json() == {"page": "/data/a%20%C3%A7%C3%A3o.csv"}
    assert (page.studio.workspace.data / "a ção.csv").read_bytes() == b"a,b\n1,2\n"
    assert page.get(found.json()["page"]).status_code == 200
    assert _upload(page, "a%20ção.csv", b"3").json() == {"page": "/data/a%20%C3%A7%C3%A3o-2.csv"}
    assert _brought(page) == ["a ção-2.csv", "a ção.csv"]


def test_what_is_too_large_or_empty_leaves_nothing(page: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is empty" in _upload(page, "a.csv", b"").text
    monkeypatch.setattr(data_page, "_MOST_BYTES", 10)
    assert _upload(page, "a.csv", b"a,b\n" * 2).status_code == 200
    found = _upload(page, "b.csv", iter([b"a,b\n"] * 3))
    assert found.status_code == 400
    assert "has more than" in found.text
    monkeypatch.undo()
    monkeypatch.setattr(data_page, "_SPARED", 1 << 60)
    assert "the disk is nearly full" in _upload(page, "c.csv", b"a,b\n").text
    assert _brought(page) == ["a.csv"]


def test_an_upload_that_breaks_off_leaves_nothing(page: Visitor) -> None:
    """Neither a file, nor half of one, nor its name taken."""
    messages = [
        {"type": "http.request", "body": b"a,b\n1,2\n", "more_body": True},
        {"type": "http.disconnect"},
    ]
    cookie = f"afina-8090={page.studio.keys.cookie}".encode()
    headers = [(b"host", b"127.0.0.1:8090"), (b"cookie", cookie), (b"content-type", b"application/octet-stream")]
    scope = {
        "type": "http", "method": "POST", "path": "/upload/a.csv", "raw_path": b"/upload/a.csv", "query_string": b"",
        "headers": headers, "http_version": "1.1", "scheme": "http", "root_path": "",
    }  # fmt: skip

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        pass

    with suppress(OSError):  # nobody is there to be answered
        asyncio.run(page.app(scope, receive, send))
    assert not messages
    assert _brought(page) == []
    assert _upload(page, "a.csv", b"a,b\n").json() == {"page": "/data/a.csv"}


def test_files_that_come_at_one_time_do_not_overwrite_each_other(page: Visitor) -> None:
    with page.studio.workspace.new_data_file("a.csv") as path:
        assert _upload(page, "a.csv", b"second\n").json() == {"page": "/data/a-2.csv"}
        path.write_bytes(b"first\n")
    assert (page.studio.workspace.data / "a-2.csv").read_bytes() == b"second\n"


def test_files_of_odd_names_are_shown_and_told_of(page: Visitor) -> None:
    """Put there by hand: no name makes the list fail."""
    for name in (b"a\xff.csv", b"\x1b[31m.csv", b"<script>.csv", b"a%2f?#.csv", b"n" * 150 + b".csv"):
        Path(os.fsdecode(os.fsencode(page.studio.workspace.data) + b"/" + name)).write_text("q,a\nx,y\n")
    listed = page.get("/data")
    assert listed.status_code == 200
    assert "<script>.csv" not in listed.text
    assert r"\x1b[31m.csv" in listed.text
    for address in ("/data/a%FF.csv", "/data/%1B%5B31m.csv", "/data/" + "n" * 150 + ".csv", "/data/%3Cscript%3E.csv"):
        assert page.get(address).status_code == 400
    assert page.get("/").status_code == 200


def test_deleting_asks(page: Visitor) -> None:
    _upload(page, "a.csv", b"q,a\nx,y\n")
    assert page.fill("/data/a.csv/delete").status_code == 400
    assert _brought(page) == ["a.csv"]
    assert page.fill("/data/a.csv/delete", sure="yes").status_code == 303
    assert _brought(page) == []
    assert page.fill("/data/a.csv/delete", sure="yes").status_code == 400
