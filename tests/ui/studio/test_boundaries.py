"""What the page shows and takes of others: links, names, records, texts; test_guard.py has who may ask."""

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from studio_opened import Visitor, opened

from afina.core.errors import InputError
from afina.core.files import write_json
from afina.ui.studio.exported import Exported

BYTES = {"content-type": "application/octet-stream"}
HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Visitor]:
    """Nothing here is to be done."""
    with opened(tmp_path / "workspace", works=False) as visitor:
        yield visitor


def test_no_link_leads_out(page: Visitor, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\nsecret,2\n")
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    workspace = page.studio.workspace
    (workspace.data / "link.csv").symlink_to(tmp_path / "rows.csv")
    (workspace.runs / "link").symlink_to(tmp_path / "run")
    assert not workspace.data_files()
    for path in ("/data/link.csv", "/ship/link"):
        answer = page.get(path)
        assert answer.status_code == 400
        assert "secret" not in answer.text


@pytest.mark.parametrize(
    "name",
    [
        "..%2fa.csv", "%2e%2e%5ca.csv", ".a.csv", "a.exe", "a", "a%00.csv", "a%1b.csv", "a%0a.csv", " a.csv",
        "x" * 130 + ".csv",
    ],
)  # fmt: skip
def test_files_of_odd_names_are_not_taken(name: str, page: Visitor) -> None:
    before = {*page.studio.workspace.root.rglob("*")}
    assert page.post(f"/upload/{name}", content=b"a,b\n1,2\n", headers=BYTES).status_code in (400, 404)
    assert {*page.studio.workspace.root.rglob("*")} == before


def test_a_name_that_leads_elsewhere_is_refused_in_words(page: Visitor) -> None:
    refused = page.post("/upload/..%2fa.csv", content=b"a,b\n1,2\n", headers=BYTES)
    assert refused.headers["content-type"].startswith("text/plain")
    assert refused.text.startswith("../a.csv is no name for a file")


def test_the_key_of_a_served_model_is_its_users_alone(page: Visitor) -> None:
    path = page.studio.workspace.key_file("serve.key")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_text().strip()) >= 32
    before = path.read_text()
    assert (page.studio.workspace.key_file("serve.key"), path.read_text()) == (path, before)


@pytest.mark.parametrize("damaged", ["[]", "{}", "{", '{"adapter": {"sha256": 1}}', "[" * 5_000])
def test_a_damaged_export_is_none(damaged: str, tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text(damaged)
    with pytest.raises(InputError):
        Exported(tmp_path)


def test_what_others_wrote_is_text(page: Visitor) -> None:
    """On the pages of work: what a job told, and what its process printed."""
    work = page.studio.queue.add("models list", {}, HOSTILE)
    lines = [
        {"event": "notice", "text": HOSTILE, "warning": True},
        {"event": "progress", "stage": HOSTILE, "done": 1, "total": 2},
    ]
    (work.folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (work.folder / "log").write_text(HOSTILE)
    write_json(work.folder / "error.json", {"kind": "InputError", "problems": [HOSTILE], "remedy": HOSTILE})
    for path in (f"/work/{work.id}", f"/work/{work.id}/live", f"/nothing/{quote(HOSTILE)}"):
        text = page.get(path).text
        assert "<script>alert" not in text
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "&lt;script&gt;" in text
