"""Who may ask, route by route, and from one server of a workspace to the next."""

import http.client
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from studio_opened import ADDRESS, Visitor, opened
from studio_works import until

from afina.core.limits import REQUEST_BYTES
from afina.ui.studio import pages
from afina.ui.studio.app import make_app
from afina.ui.studio.view import Page, Route, Studio

FORM = {"content-type": "application/x-www-form-urlencoded"}
POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
ROUTES = [(route.method, route.path) for page in pages.PAGES for route in page.routes]
ROUTES += [("GET", "/static/{name}"), ("GET", "/nowhere")]
LEADS_OUT = (
    "..%2f..%2f..%2fetc%2fpasswd", "%2e%2e%2f%2e%2e%2fetc", "%2e%2e", "..%5c..%5cetc", "%00", "a%00.csv", "%2fetc",
    ".studio", ".studio%2fsecret", "runs%2f..%2f..%2f.studio", "~", "$HOME", "%252e%252e%252f", "work.py",
)  # fmt: skip


def placed(path: str, value: str) -> str:
    return re.sub(r"\{\w+(:path)?\}", lambda _: value, path)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    with opened(tmp_path_factory.mktemp("guarded") / "workspace", works=False) as visitor:
        yield visitor


def _raw(studio: Studio) -> TestClient:
    """One that brings no cookie of its own, and follows nothing."""
    return TestClient(make_app(studio), base_url=ADDRESS, follow_redirects=False)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_nobody_asks_without_the_cookie(method: str, path: str, page: Visitor) -> None:
    stranger, name = _raw(page.studio), placed(path, "x")
    right = page.studio.keys.cookie
    for cookie in ("", "afina-8090=", f"afina-8091={right}", f"afina-8090={right}0", f"afina-8090={right[:-1]}", right):
        found = stranger.request(method, name, headers=FORM | ({"cookie": cookie} if cookie else {}))
        assert found.status_code == 403, cookie
        assert found.headers["content-security-policy"] == POLICY
        assert "set-cookie" not in found.headers


@pytest.mark.parametrize("query", ["", "?token=", "?token=wrong", "?token=the-toke", "?token=the-tokenn"])
def test_without_the_token_nobody_is_let_in(query: str, page: Visitor) -> None:
    found = _raw(page.studio).get(f"/{query}", headers={"accept-language": "pt"})
    assert (found.status_code, "set-cookie" in found.headers) == (403, False)
    assert "Copie-o do terminal." in found.text


@pytest.mark.parametrize(("method", "path"), [each for each in ROUTES if "{" in each[1]])
def test_no_part_of_an_address_leads_out_of_the_workspace(method: str, path: str, page: Visitor) -> None:
    """Nothing of elsewhere is shown, nothing is written, and no path makes a page fail."""
    workspace = page.studio.workspace
    (workspace.root.parent / "etc").write_text("the secret of others")
    (workspace.root / "etc").write_text("the secret of others")
    page.get("/runs/x/chat")  # makes the key of chats
    before = {found: found.stat().st_mtime_ns for found in workspace.root.parent.rglob("*") if found.is_file()}
    for value in LEADS_OUT:
        kind = "application/octet-stream" if path.startswith("/upload/") else FORM["content-type"]
        body = f"form_token={page.studio.keys.form}&sure=yes" if method == "POST" else None
        found = page.request(
            method, placed(path, value), content=body, headers={"content-type": kind}, follow_redirects=False
        )
        assert found.status_code in (400, 404) or found.headers["location"].startswith("/runs/"), value
        assert "the secret of others" not in found.text
        assert "root:" not in found.text
    assert before == {found: found.stat().st_mtime_ns for found in workspace.root.parent.rglob("*") if found.is_file()}


@pytest.mark.parametrize(("method", "path"), [each for each in ROUTES if each[0] == "POST"])
def test_what_changes_something_needs_its_form(method: str, path: str, page: Visitor) -> None:
    name, right = placed(path, "x.csv"), page.studio.keys.form
    if path.startswith("/upload/"):
        for kind in ("application/json", FORM["content-type"], "text/csv", "", "multipart/form-data"):
            assert page.post(name, content=b"{}", headers={"content-type": kind}).status_code == 415, kind
        return
    for kind in ("text/plain", "", "multipart/form-data; boundary=x", "application/octet-stream", "application/jsonx"):
        assert page.post(name, content=b"{}", headers={"content-type": kind}).status_code == 415, kind
    for token in ("", "form_token=", f"form_token={right}0", f"form_token={right[:-1]}", f"token={right}"):
        assert page.post(name, content=token, headers=FORM).status_code == 403, token
    for form in ("&".join("a=b" for _ in range(600)).encode(), b"\xff=%ff"):
        assert page.post(name, content=form, headers=FORM).status_code == 400, form
    for body in ("[]", "1", "{", '{"a":' * 100, '"\\ud800"'):
        found = page.post(name, content=body, headers={"content-type": "application/json"})
        assert found.status_code == 400, body
    for length in (str(REQUEST_BYTES + 1), "9" * 30, "9" * 5_000, "-1", "x", "1e3"):
        found = page.post(name, content=b"a=b", headers=FORM | {"content-length": length})
        assert found.status_code == 413, length


def test_a_body_of_unknown_length_has_a_limit(page: Visitor) -> None:
    parts = iter([b"a="] + [b"x" * 65_536] * (REQUEST_BYTES // 65_536 + 1))
    assert page.post("/data/rows.csv/delete", content=parts, headers=FORM).status_code == 413


@pytest.mark.parametrize(
    "forged", [{"origin": "http://evil.example"}, {"origin": "http://127.0.0.1:8091"}, {"sec-fetch-site": "same-site"}]
)
def test_forms_of_other_sites_change_nothing(forged: dict[str, str], page: Visitor) -> None:
    kept = page.studio.workspace.data / "kept.csv"
    kept.write_text("a,b\n1,2\n")
    form = f"form_token={page.studio.keys.form}&sure=yes"
    assert page.post("/data/kept.csv/delete", content=form, headers=FORM | forged).status_code == 403
    assert kept.exists()
    assert page.post("/data/kept.csv/delete", content=form, headers=FORM, follow_redirects=False).status_code == 303
    assert not kept.exists()


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_other_methods_do_nothing(method: str, page: Visitor) -> None:
    (page.studio.workspace.data / "rows.csv").write_text("q,a\nx,y\n")
    for _, path in ROUTES:
        found = page.request(method, placed(path, "rows.csv"))
        assert found.status_code in ((200, 400, 404, 405) if method == "HEAD" else (404, 405)), path
    assert (page.studio.workspace.data / "rows.csv").exists()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:8090"}, 403),  # a name of ours: another site's cookie, so that none comes along
        ({"host": "[::1]"}, 403), ({"host": "evil.example:8090"}, 403), ({"host": "127.0.0.1:8090@evil.example"}, 403),
        ({"host": "127.0.0.1:"}, 403), ({"host": ""}, 403), ({"host": "127.0.0.1.nip.io:8090"}, 403),
        ({"origin": "http://127.0.0.1:8090"}, 200), ({"origin": "http://localhost:8090"}, 403),
        ({"origin": "null"}, 403), ({"origin": ""}, 403), ({"origin": "http://127.0.0.1:8090.evil.example"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200), ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403), ({"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),
        ({"sec-fetch-site": "CROSS-SITE"}, 403), ({"sec-fetch-site": ""}, 403),
    ],
)  # fmt: skip
def test_names_and_sites(headers: dict[str, str], status: int, page: Visitor) -> None:
    cookie = {"cookie": f"afina-8090={page.studio.keys.cookie}"} if "localhost" not in headers.get("host", "") else {}
    assert _raw(page.studio).get("/data", headers=headers | cookie).status_code == status


def test_another_port_is_another_page(page: Visitor) -> None:
    """Cookies know of no ports: the name of ours does."""
    stranger = _raw(page.studio)
    for host, name in (("localhost:8090", "8090"), ("LOCALHOST:81", "81"), ("[::1]:8091", "8091"), ("127.0.0.1", "80")):
        found = stranger.get("/?token=the-token", headers={"host": host})
        assert found.headers["set-cookie"].startswith(f"afina-{name}={page.studio.keys.cookie};")


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("/?token=the-token", "/"), ("/data?token=the-token&row=2&file=a%26b", "/data?row=2&file=a%26b"),
        ("/data?row=2&token=the-token&token=again", "/data?row=2"),
        ("/data/50%25%23.csv?token=the-token", "/data/50%25%23.csv"),
        ("//evil.example/?token=the-token", "/evil.example/"), ("///evil.example?token=the-token", "/evil.example"),
        ("/%2Fevil.example?token=the-token", "/evil.example"), ("/%5Cevil.example?token=the-token", "/%5Cevil.example"),
        ("/%09/evil.example?token=the-token", "/%09/evil.example"),
        ("/%0d%0aset-cookie:a=b?token=the-token", "/%0D%0Aset-cookie%3Aa%3Db"),
    ],
)  # fmt: skip
def test_the_redirect_stays_here_and_has_no_token(address: str, place: str, page: Visitor) -> None:
    scope = ADDRESS + address  # an address of two slashes would be read as another host
    found = _raw(page.studio).get(scope)
    assert (found.status_code, found.headers["location"]) == (303, place)
    assert found.headers["cache-control"] == "no-store"
    cookie = {part.strip().lower() for part in found.headers["set-cookie"].split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/"} <= cookie


def test_who_has_the_cookie_may_bring_an_old_token(page: Visitor) -> None:
    found = page.get("/data?token=of-the-server-before&row=1", follow_redirects=False)
    assert (found.status_code, found.headers["location"]) == (303, "/data?row=1")
    assert _raw(page.studio).get("/data?token=of-the-server-before").status_code == 403
    assert _raw(page.studio).post("/data/x/delete?token=the-token", headers=FORM).status_code == 403


def _broken(call: Any) -> Any:
    raise ValueError("/a/secret/path")


def test_every_answer_has_the_policy(page: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that failed, which says nothing of why."""
    routes = [Page("broken", (Route("GET", "/broken", _broken),)), *pages.PAGES]
    monkeypatch.setattr("afina.ui.studio.app.PAGES", routes)
    client = TestClient(make_app(page.studio), base_url=ADDRESS, raise_server_exceptions=False)
    client.get("/?token=the-token")
    for path, status in (("/broken", 500), ("/", 200), ("/nowhere", 404), ("/static/studio.js", 200), ("/data/x", 400)):
        found = client.get(path)
        assert found.status_code == status
        assert found.headers["content-security-policy"] == POLICY
        assert found.headers["x-content-type-options"] == "nosniff"
        assert found.headers["referrer-policy"] == "same-origin"
        assert found.headers["cross-origin-opener-policy"] == "same-origin"
        assert found.headers["cross-origin-resource-policy"] == "same-origin"
        assert "secret" not in found.text
        if found.headers["content-type"].startswith("text/html"):
            assert not re.search(
                r"<script(?! type=\"module\" src=\"/static/)|\sstyle=|\son\w+=|https?://(?!127)", found.text
            )


@contextmanager
def _server(workspace: Path) -> Iterator[tuple[subprocess.Popen[str], int, str]]:
    """`afina studio` as it is typed: its process, its port and its token."""
    command = [sys.executable, "-m", "afina", "studio", "--workspace", str(workspace), "--port", "0", "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\?token=([\w-]{32,})\n", process.stdout.readline())
        assert found, process.stderr.read()
        yield process, int(found[1]), found[2]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def _ask(port: int, path: str, cookie: str = "") -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"cookie": cookie} if cookie else {})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


def test_a_server_of_its_own(tmp_path: Path) -> None:
    """It prints its address, has work done, keeps its workspace to itself, and the next one knows who was let in."""
    workspace = tmp_path / "workspace"
    with _server(workspace) as (process, port, token):
        until(lambda: _listens(port))
        entered = _ask(port, f"/?token={token}")
        assert (entered.status, entered.getheader("location")) == (303, "/")
        cookie = entered.getheader("set-cookie").partition(";")[0]
        assert cookie.startswith(f"afina-{port}=")
        assert token not in cookie
        assert [_ask(port, "/", each).status for each in (cookie, "", cookie[:-1])] == [200, 403, 403]
        assert "server" not in {name.lower() for name, _ in _ask(port, "/", cookie).getheaders()}
        assert stat.S_IMODE((workspace / ".studio" / "secret").stat().st_mode) == 0o600
        (workspace / "rows.csv").write_text("q,a\n" + "x,y\n" * 60)
        assert _ask(port, "/data/rows.csv", cookie).status == 200  # its rows are looked at by a process of their own
        until(lambda: [*workspace.glob(".studio/work/*/result.json")])
        second = subprocess.run(
            [sys.executable, "-m", "afina", "studio", "--workspace", str(workspace), "--port", "0", "--no-browser"],
            capture_output=True, text=True, timeout=60, env=os.environ,
        )  # fmt: skip
        assert (second.returncode, second.stdout) == (2, "")
        assert "another page is open" in second.stderr
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 130)
        assert "Traceback" not in process.stderr.read()
    with _server(workspace) as (process, again, token):
        until(lambda: _listens(again))
        name = cookie.replace(f"afina-{port}=", f"afina-{again}=")
        assert _ask(again, "/", name).status == 200
        assert _ask(again, f"/?token={token}x").status == 403
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    try:
        return _ask(port, "/").status == 403
    except OSError:
        return False
