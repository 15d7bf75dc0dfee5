"""Uploads to the hub, played by a small server on this machine: what arrives, and what never does."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from exports import recorded_run, write
from huggingface_hub import constants

from afina.core.errors import OutputError, SettingsError
from afina.core.files import read_jsonl
from afina.ui.cli import main

# Of the hub's library and the one by which it asks.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
BASE = f"someone/tiny@{COMMIT}"
LARGE = 20_000  # bytes from which on a file goes to the large files' storage


class Uploads(BaseHTTPRequestHandler):
    """As much of the hub's protocol as creating a repository and one commit take."""

    protocol_version = "HTTP/1.1"

    def __init__(self, hub: "FakeHub", *arguments: Any) -> None:
        self.hub = hub
        super().__init__(*arguments)

    def log_message(self, *arguments: Any) -> None: ...

    def reply(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, each in (("Content-Type", "application/json"), ("Content-Length", str(len(body)))):
            self.send_header(name, each)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.hub.asked.append(self.path)
        name = self.path.removeprefix("/api/models/")
        self.reply({"id": name, "private": not self.hub.public, "sha": COMMIT, "siblings": [], "tags": []})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_PUT(self) -> None:
        content = self.body()
        self.hub.stored[hashlib.sha256(content).hexdigest()] = content
        self.reply({})

    def do_POST(self) -> None:
        self.hub.asked.append(self.path)
        content, path = self.body(), self.path.partition("?")[0]
        if self.headers.get("Authorization") != "Bearer hf_test":
            self.reply({"error": "Invalid credentials"}, 401)
        elif path == "/api/repos/create":
            self.hub.created.append(json.loads(content))
            self.reply({"url": f"{self.hub.address}/owner/name"})
        elif path == "/api/validate-yaml":
            self.reply({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = json.loads(content)["files"]
            modes = [
                {"path": f["path"], "shouldIgnore": False, "uploadMode": "lfs" if f["size"] > LARGE else "regular"}
                for f in files
            ]
            self.reply({"files": modes})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.hub.address}/store/{each['oid']}"}}}
                for each in json.loads(content)["objects"]
            ]
            self.reply({"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            self.commit([json.loads(line) for line in content.splitlines()])
        else:
            self.reply({"error": f"not played: {path}"}, 404)

    def commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.hub.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.files[value["path"]] = self.hub.stored[value["oid"]]
        self.reply({"commitUrl": f"{self.hub.address}/owner/name/commit/{COMMIT}", "commitOid": COMMIT})


class FakeHub:
    def __init__(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Uploads, self))
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.public = False
        self.asked: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.stored: dict[str, bytes] = {}
        self.files: dict[str, bytes] = {}
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    found = FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", found.address)  # as HF_ENDPOINT, which is read when it is imported
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield found
    found.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded_run(tmp_path_factory.mktemp("Maria Silva"))


def head_of(card: bytes) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.decode().split("---\n")[1])
    return found


def test_the_forms_arrive_as_they_are_here_privately(hub: FakeHub, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = write(run, "safetensors,gguf:Q8_0,hub:owner/name", out, base_model=BASE)
    published = result.published["hub:owner/name"]
    assert published["uploaded"]
    assert published["url"].endswith(COMMIT)
    assert [(each["name"], each["visibility"]) for each in hub.created] == [("name", "private")]
    assert {name: len(content) for name, content in hub.files.items()} == published["files"]
    for name, content in hub.files.items():
        local = out / name if (out / name).exists() else out / "run-merged" / name
        if name not in ("README.md", "afina.json"):
            assert hashlib.sha256(content).hexdigest() == hashlib.sha256(local.read_bytes()).hexdigest(), name
    assert {"model.safetensors", "config.json", "run-Q8_0.gguf", "tokenizer.json"} <= hub.files.keys()


def test_the_card_has_what_the_hub_reads(hub: FakeHub, run: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    write(run, "gguf:Q8_0,hub:owner/name", tmp_path / "out", base_model=BASE)
    card = hub.files["README.md"]
    head = head_of(card)
    assert (head["base_model"], head["base_model_relation"]) == ("someone/tiny", "finetune")
    (entry,) = head["model-index"]
    evaluation = json.loads((run / "evaluation.json").read_text())
    given = {each["type"]: each["value"] for each in entry["results"][0]["metrics"]}
    assert given[evaluation["main_metric"]] == evaluation["adapted"][evaluation["main_metric"]]
    assert ModelCard(card.decode()).data.eval_results  # as the hub's own library reads it
    text = card.decode()
    assert COMMIT in text
    assert "llama-cli -m run-Q8_0.gguf" in text
    assert json.loads((run / "adapter" / "afina.json").read_text())["base"]["sha256"] in text


def test_alone_it_is_the_adapter_on_a_base_of_the_hub(hub: FakeHub, run: Path, tmp_path: Path) -> None:
    write(run, "hub:owner/name", tmp_path / "out", base_model=BASE, public=True)
    assert hub.created[0]["visibility"] == "public"
    config = json.loads(hub.files["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == ("someone/tiny", COMMIT)
    facts = json.loads(hub.files["afina.json"])
    assert facts["load"] == {"name": "someone/tiny", "revision": COMMIT}
    weights = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    assert hub.files["adapter_model.safetensors"] == weights
    assert head_of(hub.files["README.md"])["base_model_relation"] == "adapter"


def test_no_row_path_or_name_goes_out(hub: FakeHub, run: Path, tmp_path: Path) -> None:
    """Whatever the run's folder holds: its data, its answers, where it lies, who made it."""
    for to in ("hub:owner/name", "safetensors,gguf:F16,gguf-lora,ollama,hub:owner/name"):
        hub.files.clear()
        write(run, to, tmp_path / to.split(":")[0], base_model=BASE)
        everything = b"\n".join(hub.files.values())
        assert not {name for name in hub.files if name.endswith((".jsonl", ".html", "config.yaml"))}
        hidden = [str(run), str(tmp_path), "Maria Silva", "colours", "/tmp", "/home"]
        hidden += [row["where"] for row in read_jsonl(run / "predictions.jsonl")]
        for word in hidden:
            assert word.encode() not in everything, (to, word)
        text = hub.files["README.md"].decode()
        for row in read_jsonl(run / "predictions.jsonl"):
            assert not re.search(rf"\b{row['prompt']}\b", text)


def test_a_dry_run_lists_files_and_bytes_and_asks_nobody(
    hub: FakeHub, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    words = ["export", str(run), "--to", "gguf:Q8_0,hub:owner/name", "--out", str(tmp_path / "out"), "--rows", "4"]
    assert main([*words, "--base-model", BASE, "--dry-run", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    size = (tmp_path / "out" / "run-Q8_0.gguf").stat().st_size
    assert f"{size:,}  run-Q8_0.gguf" in shown
    assert "README.md" in shown
    assert "private" in shown
    assert not hub.asked
    with pytest.raises(SettingsError, match="hf auth login"):
        write(run, "hub:owner/name", tmp_path / "more", base_model=BASE)
    assert not (tmp_path / "more").exists()


def test_what_the_hub_refuses_is_told_and_the_files_stay(
    hub: FakeHub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.public = True
    with pytest.raises(OutputError, match="owner/name is public"):
        write(run, "gguf:Q8_0,hub:owner/name", tmp_path / "out", base_model=BASE)
    assert not hub.files
    assert (tmp_path / "out" / "run-Q8_0.gguf").is_file()
    hub.public = False
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(OutputError, match="could not be uploaded") as caught:
        write(run, "gguf:Q8_0,hub:owner/name", tmp_path / "two", base_model=BASE)
    assert str(tmp_path / "two") in caught.value.remedy
