"""Who may ask the page, and what it takes: names, cookies, tokens, types, bodies, paths, links, files."""

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from afina.core.errors import InputError, OutputError
from afina.core.files import write_json
from afina.core.limits import REQUEST_BYTES
from afina.ui.studio.app import make_app
from afina.ui.studio.exported import Exported
from afina.ui.studio.guard import Keys
from afina.ui.studio.pages import PAGES
from afina.ui.studio.view import Studio
from afina.ui.studio.work import Queue, Work
from afina.ui.studio.workspace import Workspace

ADDRESS = "http://127.0.0.1:8090"
FORM = {"content-type": "application/x-www-form-urlencoded"}
BYTES = {"content-type": "application/octet-stream"}
HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    """A workspace whose work never begins: nothing here is to be done."""
    workspace = Workspace(tmp_path / "workspace")
    queue = Queue(workspace.work)
    queue.look = lambda: None  # type: ignore[method-assign]
    yield Studio(workspace, queue, Keys(workspace.secret(), "the-token"))
    if workspace._lock is not None:
        os.close(workspace._lock)


@pytest.fixture
def stranger(studio: Studio) -> TestClient:
    return TestClient(make_app(studio), base_url=ADDRESS, follow_redirects=False)


@pytest.fixture
def client(stranger: TestClient) -> TestClient:
    """One that came by the printed address."""
    assert stranger.get("/?token=the-token").status_code == 303
    return stranger


def test_the_token_leaves_the_address_and_becomes_a_cookie(stranger: TestClient, studio: Studio) -> None:
    answer = stranger.get("/data?token=the-token&file=a%26b")
    assert (answer.status_code, answer.headers["location"]) == (303, "/data?file=a%26b")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"afina-8090={studio.keys.cookie};")
    assert {"httponly", "samesite=strict"} <= {part.strip().lower() for part in cookie.split(";")}
    assert "the-token" not in cookie
    assert stranger.get("/data").status_code == 200
    assert stranger.get(f"{ADDRESS}//evil.example/?token=the-token").headers["location"] == "/evil.example/"


@pytest.mark.parametrize("query", ["", "?token=", "?token=wrong", "?token=the-toke", "?token=the-tokenn"])
def test_without_the_token_nobody_is_let_in(query: str, stranger: TestClient) -> None:
    answer = stranger.get(f"/{query}")
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_no_route_is_open(stranger: TestClient) -> None:
    """Neither without a cookie nor with another one."""
    routes = [(route.method, route.path) for page in PAGES for route in page.routes]
    assert len(routes) > 10
    for cookie in ({}, {"cookie": "afina-8090=0"}, {"cookie": "afina-8091=x"}):
        for method, path in [*routes, ("GET", "/static/{name}"), ("GET", "/nothing")]:
            plain = re.sub(r"\{[^}]*\}", "x", path)
            assert stranger.request(method, plain, headers=FORM | cookie).status_code == 403, path


def test_a_new_server_of_the_workspace_knows_its_tabs(client: TestClient, studio: Studio) -> None:
    again = Keys(studio.workspace.secret(), "another-token")
    assert (again.cookie, again.form) == (studio.keys.cookie, studio.keys.form)
    assert Keys(b"another workspace", "the-token").cookie != studio.keys.cookie


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8090", "127.0.0.1.evil.example:8090", "localhost.evil:8090", "0.0.0.0:8090"]
)
def test_other_names_are_refused(host: str, client: TestClient) -> None:
    assert client.get("/", headers={"host": host}).status_code == 403
    assert client.get("/?token=the-token", headers={"host": host}).status_code == 403


@pytest.mark.parametrize(
    "forged",
    [
        {"origin": "http://evil.example"}, {"origin": "http://127.0.0.1:8091"}, {"origin": "null"},
        {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
    ],
)  # fmt: skip
def test_pages_of_other_sites_change_nothing(forged: dict[str, str], client: TestClient, studio: Studio) -> None:
    kept = studio.workspace.data / "rows.csv"
    kept.write_text("a,b\n1,2\n")
    form = f"form_token={studio.keys.form}&sure=yes"
    assert client.post("/data/rows.csv/delete", content=form, headers=FORM | forged).status_code == 403
    assert kept.exists()
    assert client.post("/data/rows.csv/delete", content=form, headers=FORM).status_code == 303
    assert not kept.exists()


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("text/plain", "{}", 415), ("multipart/form-data; boundary=x", "--x--", 415), ("", "sure=yes", 415),
        ("application/octet-stream", "sure=yes", 415), ("application/json; charset=x", "[]", 400),
        ("application/json", "{", 400), ("application/json", "{" + '"a":[' * 200, 400),
        (FORM["content-type"], "sure=yes", 403), (FORM["content-type"], "form_token=0&sure=yes", 403),
        (FORM["content-type"], "&".join("a=b" for _ in range(600)), 400), (FORM["content-type"], "\xff=%ff", 400),
    ],
)  # fmt: skip
def test_other_bodies_are_refused(kind: str, body: str, status: int, client: TestClient, studio: Studio) -> None:
    kept = studio.workspace.data / "rows.csv"
    kept.write_text("a,b\n1,2\n")
    answer = client.post("/data/rows.csv/delete", content=body.encode("latin-1"), headers={"content-type": kind})
    assert answer.status_code == status
    assert kept.exists()


def test_large_bodies_are_refused(client: TestClient) -> None:
    body = b"a=" + b"x" * REQUEST_BYTES
    assert client.post("/data/rows.csv/delete", content=body, headers=FORM).status_code == 413
    parts = iter([b"a="] + [b"x" * 65_536] * (REQUEST_BYTES // 65_536 + 1))  # whose length is not said beforehand
    assert client.post("/data/rows.csv/delete", content=parts, headers=FORM).status_code == 413


@pytest.mark.parametrize(
    "path",
    [
        "/data/..%2f..%2fsecret", "/data/.studio", "/data/%00", "/ship/../../etc", "/ship/..%2f..%2fetc",
        "/ship/.studio", "/ship/", "/ship/a%2f%2fb", "/static/..%2fview.py", "/static/work.py", "/work/..%2fdata",
        "/work/.", "/serving/..%2f..", "/serving/x/live",
    ],
)  # fmt: skip
def test_no_path_leads_out(path: str, client: TestClient) -> None:
    answer = client.get(path)
    assert answer.status_code in (400, 404)
    assert "Traceback" not in answer.text


def test_no_link_leads_out(client: TestClient, studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\nsecret,2\n")
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    workspace = studio.workspace
    (workspace.data / "link.csv").symlink_to(tmp_path / "rows.csv")
    (workspace.runs / "link").symlink_to(tmp_path / "run")
    assert not workspace.data_files()
    for path in ("/data/link.csv", "/ship/link"):
        answer = client.get(path)
        assert answer.status_code == 400
        assert "secret" not in answer.text


@pytest.mark.parametrize(
    "name",
    [
        "..%2fa.csv", "%2e%2e%5ca.csv", ".a.csv", "a.exe", "a", "a%00.csv", "a%1b.csv", "a%0a.csv", " a.csv",
        "x" * 130 + ".csv",
    ],
)  # fmt: skip
def test_files_of_odd_names_are_not_taken(name: str, client: TestClient, studio: Studio) -> None:
    before = {*studio.workspace.root.rglob("*")}
    assert client.post(f"/upload/{name}", content=b"a,b\n1,2\n", headers=BYTES).status_code in (400, 404)
    assert {*studio.workspace.root.rglob("*")} == before


def test_a_file_is_there_whole_and_replaces_none(client: TestClient, studio: Studio) -> None:
    data = studio.workspace.data
    for content, name in ((b"a,b\n1,2\n", "rows.csv"), (b"a,b\n3,4\n", "rows-2.csv")):
        answer = client.post("/upload/rows.csv", content=content, headers=BYTES)
        assert answer.json() == {"page": f"/data/{name}"}
        assert (data / name).read_bytes() == content
    assert client.post("/upload/none.csv", content=b"", headers=BYTES).status_code == 400
    assert {path.name for path in data.iterdir()} == {"rows.csv", "rows-2.csv"}


def test_every_answer_has_the_policy(client: TestClient, stranger: TestClient) -> None:
    for path in ("/", "/data", "/ship", "/nothing", "/data/none.csv", "/static/page.css", "/static/studio.js"):
        policy = client.get(path).headers["content-security-policy"]
        assert policy.startswith("default-src 'self';")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy


def test_a_workspace_is_one_pages(studio: Studio) -> None:
    with pytest.raises(OutputError, match="another page"):
        Workspace(studio.workspace.root)
    assert stat.S_IMODE(studio.workspace.own.stat().st_mode) == 0o700
    assert stat.S_IMODE((studio.workspace.own / "secret").stat().st_mode) == 0o600


def test_the_key_of_a_served_model_is_its_users_alone(studio: Studio) -> None:
    path = studio.workspace.key_file("serve.key")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_text().strip()) >= 32
    before = path.read_text()
    assert (studio.workspace.key_file("serve.key"), path.read_text()) == (path, before)


def test_another_process_with_its_number_is_not_the_work(studio: Studio) -> None:
    work = studio.queue.add("models list", {})
    assert work.state == "waiting"
    write_json(work.folder / "process.json", {"pid": os.getpid(), "began": 1.0})
    assert Work(work.folder).state == "died"
    for damaged in ([], {"pid": "x"}, {"pid": -1, "began": 0}, {"pid": 2**70, "began": 0}):
        write_json(work.folder / "process.json", damaged)
        assert Work(work.folder).state == "died"


@pytest.mark.parametrize("damaged", ["[]", "{}", "{", '{"adapter": {"sha256": 1}}', "[" * 5_000])
def test_a_damaged_export_is_none(damaged: str, tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text(damaged)
    with pytest.raises(InputError):
        Exported(tmp_path)


def test_what_others_wrote_is_text(client: TestClient, studio: Studio) -> None:
    """On the pages of work: what a job told, and what its process printed."""
    work = studio.queue.add("models list", {}, HOSTILE)
    lines = [
        {"event": "notice", "text": HOSTILE, "warning": True},
        {"event": "progress", "stage": HOSTILE, "done": 1, "total": 2},
    ]
    (work.folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (work.folder / "log").write_text(HOSTILE)
    write_json(work.folder / "error.json", {"kind": "InputError", "problems": [HOSTILE], "remedy": HOSTILE})
    for path in (f"/work/{work.id}", f"/work/{work.id}/live", f"/nothing/{quote(HOSTILE)}"):
        text = client.get(path).text
        assert "<script>alert" not in text
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "&lt;script&gt;" in text
