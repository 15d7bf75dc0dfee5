"""The page of shipping, on a run that was trained before: what can leave, what left, and what is asked for."""

import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

from afina.core.config import build, json_object
from afina.core.errors import BaseModelError, InputError
from afina.core.files import read_json, write_json
from afina.jobs.export import ExportSettings, export
from afina.jobs.runs.forms import FormsOfRunResult, FormsOfRunSettings, forms
from afina.ui.studio.app import make_app
from afina.ui.studio.guard import Keys
from afina.ui.studio.pages.ship import _lines
from afina.ui.studio.view import Studio
from afina.ui.studio.work import Queue, Work
from afina.ui.studio.workspace import Workspace

RECORDED = Path(__file__).parents[2] / "recorded"


def recorded_run(folder: Path, base: Path) -> Path:
    """The run in `folder`, on a copy of its base."""
    shutil.copytree(RECORDED / "base", base, dirs_exist_ok=True)
    shutil.copytree(RECORDED / "finished", folder)
    for file in folder.rglob("*"):
        if file.is_file() and b"@FOLDER@" in (content := file.read_bytes()):
            file.write_bytes(content.replace(b"@FOLDER@", str(base.parent).encode()))
    return folder


def formed(run: Path, **more: Any) -> FormsOfRunResult:
    return forms(build(FormsOfRunSettings, {"run": run, **more}))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("forms")
    return json_object(formed(recorded_run(folder / "run", folder / "base")))


class Shop(SimpleNamespace):
    """A page on a workspace with the run `run`, whose forms were looked at; work is recorded, and not done."""

    studio: Studio
    client: TestClient

    def post(self, path: str, **form: str) -> Any:
        return self.client.post(path, data={"form_token": self.studio.keys.form, **form})

    def newest(self) -> Work:
        return self.studio.queue.all()[0]


@pytest.fixture
def shop(tmp_path: Path, expected: Any) -> Iterator[Shop]:
    workspace = Workspace(tmp_path / "workspace")
    recorded_run(workspace.runs / "run", tmp_path / "base")
    queue = Queue(workspace.work)
    queue.look = lambda: None  # type: ignore[method-assign]
    studio = Studio(workspace, queue, Keys(workspace.secret(), "t"))
    client = TestClient(make_app(studio), base_url="http://127.0.0.1:8090", follow_redirects=False)
    client.get("/?token=t")
    look = queue.add("runs forms", {"run": str(workspace.runs / "run")}, "run")
    write_json(look.folder / "result.json", expected)
    yield Shop(studio=studio, client=client)
    if workspace._lock is not None:
        os.close(workspace._lock)


def test_forms_have_their_sizes(expected: Any) -> None:
    found = expected["forms"]
    assert expected["task"] == "causal"
    assert expected["prompt"] == "{q}"
    assert expected["hub_base"] is None
    assert {"gguf:Q8_0", "gguf:F16", "gguf:Q4_K_M", "gguf-lora", "safetensors", "ollama"} <= {*found}
    assert not any(name.startswith("hub") for name in found)
    assert all(not each["problems"] and each["bytes"] > 0 for each in found.values())
    assert found["gguf:Q8_0"]["bytes"] < found["gguf:F16"]["bytes"]
    assert found["ollama"]["bytes"] == found["gguf:Q8_0"]["bytes"]


def test_what_stands_against_a_form_is_said(tmp_path: Path) -> None:
    run = recorded_run(tmp_path / "run", tmp_path / "base")
    shutil.rmtree(run / "adapter")
    shutil.copytree(RECORDED / "dora" / "adapter", run / "adapter")
    found = formed(run).forms
    assert "dora" in found["gguf-lora"].problems[0]
    assert not found["gguf:Q8_0"].problems
    with pytest.raises(BaseModelError, match="none"):
        formed(run, base=str(tmp_path / "none"))
    shutil.rmtree(run / "adapter")
    with pytest.raises(InputError, match=r"no adapter|cut off"):
        formed(run)


def test_runs_are_chosen(shop: Shop) -> None:
    assert 'href="/ship/run"' in shop.client.get("/ship").text
    shutil.rmtree(shop.studio.workspace.runs / "run" / "adapter")
    page = shop.client.get("/ship")
    assert 'href="/ship/run"' not in page.text
    assert 'href="/data"' in page.text


def test_a_run_is_looked_at_first(shop: Shop) -> None:
    recorded_run(shop.studio.workspace.runs / "sweep" / "a b", shop.studio.workspace.root.parent / "base")
    page = shop.client.get("/ship/sweep/a%20b")
    assert page.status_code == 200
    look = shop.newest()
    assert (look.job, look.about) == ("runs forms", "sweep/a b")
    assert f'data-live="/work/{look.id}/live"' in page.text
    shop.client.get("/ship/sweep/a%20b")
    assert shop.newest().id == look.id


@pytest.mark.parametrize("language", ["en", "pt-BR"])
def test_a_card_for_each_form(language: str, shop: Shop, expected: Any) -> None:
    page = shop.client.get("/ship/run", headers={"accept-language": language}).text
    for form in expected["forms"]:
        assert f'name="form" value="{form}"' in page
    assert ("Make it" if language == "en" else "Criar") in page
    assert not [line for line in page.splitlines() if " style=" in line or "<script>" in line]


def test_an_export_is_asked_for_once(shop: Shop) -> None:
    answer = shop.post("/export/run", form="gguf:Q8_0")
    work = shop.newest()
    assert answer.headers["location"] == f"/work/{work.id}"
    workspace = shop.studio.workspace
    assert (work.job, work.about) == ("export", "run")
    out = str(workspace.exports / "run-gguf-Q8_0")
    assert work.settings == {"run": str(workspace.runs / "run"), "to": ["gguf:Q8_0"], "out": out}
    assert shop.post("/export/run", form="gguf:Q8_0").headers["location"] == f"/work/{work.id}"
    assert f'href="/work/{work.id}"' in shop.client.get("/ship/run").text
    count = len(shop.studio.queue.all())
    for wrong in ("", "hub:a/b", "gguf:Q9", "../x"):
        assert shop.post("/export/run", form=wrong).status_code == 400
    assert len(shop.studio.queue.all()) == count


def test_a_form_that_is_not_possible_is_not_offered(shop: Shop, expected: Any) -> None:
    look = shop.studio.queue.of("run", ("runs forms",))
    assert look is not None
    problem = {"bytes": 0, "problems": ["`x` is <b>trained</b> too"]}
    write_json(look.folder / "result.json", expected | {"forms": expected["forms"] | {"gguf-lora": problem}})
    page = shop.client.get("/ship/run").text
    assert "<code>x</code> is &lt;b&gt;trained&lt;/b&gt; too" in page
    assert 'name="form" value="gguf-lora"' not in page
    assert 'name="alone" value="yes" checked' in page
    assert shop.post("/export/run", form="gguf-lora").status_code == 400


def test_what_was_exported_is_found_by_its_weights(shop: Shop) -> None:
    workspace = shop.studio.workspace
    run, out = workspace.runs / "run", workspace.exports / "by hand"
    given = {"run": run, "to": "gguf-lora", "out": out, "rows": 4, "device": "cpu"}
    done = export(build(ExportSettings, given))
    page = shop.client.get("/ship/run").text
    assert str(out) in page
    assert "run-lora.gguf" in page
    assert f"{done.files['run-lora.gguf']['sha256'][:12]}…" in page
    assert "llama-server -m" in page
    assert "Make it again" in page
    assert "| form |" not in page  # what is measured is told in words
    address = "/download/run?folder=by+hand&file=run-lora.gguf"
    assert address.replace("&", "&amp;") in page
    taken = shop.client.get(address)
    assert taken.content == (out / "run-lora.gguf").read_bytes()
    assert taken.headers["content-disposition"] == 'attachment; filename="run-lora.gguf"'
    for folder, file in (
        ("by hand", "export.json"), ("by hand", "../../.studio/secret"), ("..", "run-lora.gguf"), ("", ""),
        ("by hand", str(out / "run-lora.gguf")),
    ):  # fmt: skip
        assert shop.client.get("/download/run", params={"folder": folder, "file": file}).status_code == 400
    (out / "run-lora.gguf").rename(out / "kept")
    (out / "run-lora.gguf").symlink_to(workspace.own / "secret")
    assert shop.client.get(address).status_code == 400
    (out / "run-lora.gguf").unlink()
    (out / "kept").rename(out / "run-lora.gguf")
    assert shop.client.get("/download/run?folder=by+hand").status_code == 400
    assert TestClient(shop.client.app, base_url="http://127.0.0.1:8090").get(address).status_code == 403
    assert "0.0 %; before the export 0.0 % (4 rows)." in page
    assert "antes da exportação, 0,0 %" in shop.client.get("/ship/run", headers={"accept-language": "pt"}).text
    record = read_json(out / "export.json")
    write_json(out / "export.json", record | {"adapter": {"sha256": "0" * 64}})
    assert str(out) not in shop.client.get("/ship/run").text


def test_an_upload_is_listed_first(shop: Shop) -> None:
    assert shop.post("/publish/run", upload="yes", tried="x").status_code == 400
    shop.post("/publish/run", repository="me/model", base_model="owner/base", **{"with": "safetensors"})
    tried = shop.newest()
    assert tried.settings["to"] == ["safetensors", "hub:me/model"]
    assert (tried.settings["dry_run"], tried.settings["public"]) == (True, False)
    assert shop.post("/publish/run", upload="yes", tried=tried.id).status_code == 400  # not listed yet
    listed = {"repository": "me/model", "visibility": "private", "files": {"a.bin": 1_500}, "uploaded": False}
    write_json(tried.folder / "result.json", {"published": {"hub:me/model": listed}})
    page = shop.client.get("/ship/run").text
    assert "To me/model (private) would go:" in page
    assert "1.5 kB" in page
    assert shop.post("/publish/run", upload="yes", tried=tried.id).status_code == 303
    settings = shop.newest().settings
    assert (settings["dry_run"], settings["overwrite"], settings["out"]) == (False, True, tried.settings["out"])
    assert "token" not in settings
    assert shop.post("/publish/run", repository="me/model", **{"with": "/etc"}).status_code == 400


def test_uploads_that_wait_have_folders_of_their_own(shop: Shop) -> None:
    outs = []
    for repository in ("me/one", "me/two"):
        shop.post("/publish/run", repository=repository, base_model="owner/base")
        outs.append(shop.newest().settings["out"])
    assert len({*outs}) == 2
    tried = shop.newest()
    listed = {"repository": "me/two", "visibility": "private", "files": {"a.bin": 1_500}, "uploaded": False}
    write_json(tried.folder / "result.json", {"published": {"hub:me/two": listed}})
    begun = shop.post("/publish/run", upload="yes", tried=tried.id).headers["location"]
    assert begun == f"/work/{shop.newest().id}"
    count = len(shop.studio.queue.all())
    assert shop.post("/publish/run", upload="yes", tried=tried.id).status_code == 400  # it goes on already
    assert len(shop.studio.queue.all()) == count


def test_a_model_at_an_address(shop: Shop) -> None:
    assert shop.post("/serve/run", port="0", alone="yes").headers["location"] == "/ship/run#serve"
    work = shop.newest()
    workspace = shop.studio.workspace
    key_file = workspace.own / "serve.key"
    run = str(workspace.runs / "run")
    assert work.settings == {"runs": [run], "port": 0, "key_file": str(key_file), "merge": "run"}
    assert not work.heavy
    shop.post("/serve/run", port="0")
    assert shop.newest().id == work.id
    assert shop.post("/serve/sweep", port="x").status_code == 400
    page = shop.client.get("/ship/run").text
    assert f'data-live="/serving/{work.id}/live"' in page
    assert f'action="/work/{work.id}/stop"' in page
    shop.post(f"/work/{work.id}/stop")
    assert 'action="/serve/run"' in shop.client.get("/ship/run").text


def test_lines_to_copy_hold_any_name() -> None:
    name = 'it\'s $HOME "q" `x`'
    curl, python = _lines("http://127.0.0.1:1", "k" * 32, name, "causal", "Olá?")
    words = shlex.split(curl.replace("\\\n", ""))
    assert words[:2] == ["curl", "http://127.0.0.1:1/v1/chat/completions"]
    assert f"authorization: Bearer {'k' * 32}" in words
    asked: dict[str, Any] = {}
    exec(python.partition("\nrequest = ")[0], asked)  # these lines are ours
    assert asked["asked"]["model"] == name
    assert "/v1/classify" in _lines("http://127.0.0.1:1", "k", name, "classify", "x")[1]
