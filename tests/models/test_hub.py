"""The hub, played by a small server on this machine: downloads that are cut, corrupt files, offline work, the
caches."""

import hashlib
import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forked
import pytest
from conftest import own_cache

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as downloading a model takes, for the files of one folder. `cuts` connections
    break in the middle of the weights, `corrupt` answers hold other bytes than promised; `stalls` are the bytes of the
    weights after which an answer never ends; one that is `deaf` sends whole files whatever it is asked for."""

    protocol_version = "HTTP/1.1"

    def __init__(self, hub: "Served", *arguments) -> None:
        self.hub = hub
        super().__init__(*arguments)

    def log_message(self, *arguments) -> None: ...

    def reply(self, body: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        self.hub.asked.append(self.path)
        path = self.path.split("?")[0]
        files = sorted(f.name for f in self.hub.folder.iterdir())
        if path.startswith("/api/models/someone/tiny/tree/"):
            tree = [
                {"type": "file", "path": f, "size": (self.hub.folder / f).stat().st_size, "oid": f"{i:040x}"}
                for i, f in enumerate(files)
            ]
            self.reply(json.dumps(tree).encode(), Content_Type="application/json")
        elif path.startswith("/api/models/someone/tiny"):
            info = {"id": "someone/tiny", "sha": COMMIT, "siblings": [{"rfilename": f} for f in files], "tags": []}
            self.reply(json.dumps(info).encode(), Content_Type="application/json")
        elif path.startswith("/someone/tiny/resolve/") and path.rsplit("/", 1)[1] in files:
            self.file(path.rsplit("/", 1)[1])
        elif path.startswith(("/someone/gated/", "/api/models/someone/gated")):
            self.refuse(403, "GatedRepo")
        else:
            self.refuse(404, "RepoNotFound")

    do_HEAD = do_GET

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def file(self, name: str) -> None:
        content = (self.hub.folder / name).read_bytes()
        large = name.endswith(".safetensors")
        git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        etag = hashlib.sha256(content).hexdigest() if large else git
        wanted = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")
        begin, whole = int(wanted[0]), len(content)
        if wanted[1] and self.command == "GET":
            content = content[: int(wanted[1]) + 1]
        if large and self.command == "GET":
            self.hub.ranges.append(self.headers.get("Range"))
        if large and self.command == "GET" and self.hub.corrupt:
            self.hub.corrupt -= 1
            content = content[:-1] + bytes([content[-1] ^ 1])
        if self.hub.deaf:
            begin = 0
        self.send_response(206 if begin else 200)
        for key, value in (("ETag", f'"{etag}"'), ("X-Repo-Commit", COMMIT), ("Accept-Ranges", "bytes")):
            self.send_header(key, value)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{whole - 1}/{whole}")
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        if self.command == "HEAD":
            return
        if large and self.hub.cuts:
            self.hub.cuts -= 1
            self.wfile.write(content[begin : begin + whole // 12])
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
            return
        if large and self.hub.stalls:
            self.wfile.write(content[begin : begin + self.hub.stalls.pop(0)])
            self.wfile.flush()
            self.hub.stalled.set()
            with suppress(OSError):
                self.connection.recv(1)  # until whoever asks is gone
            self.close_connection = True
            return
        self.wfile.write(content[begin:])


class Served:
    """A hub with one model, its folder, and what was asked of it; the home of who asks is where it was."""

    def __init__(self, place: Path) -> None:
        self.folder, self.home = place / "repo", place / "home"
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, self))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def begin(self, model: Path) -> None:
        """A hub that serves this model, and that nobody has met yet."""
        for folder in (self.folder, self.home):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(model, self.folder)
        self.cache = own_cache(self.home / "afina")
        self.cuts, self.corrupt, self.deaf = 0, 0, False
        self.stalls: list[int] = []
        self.stalled = threading.Event()
        self.asked: list[str] = []
        self.ranges: list[str | None] = []  # of the weights, that were fetched

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def preset(self) -> dict[str, str]:
        """What makes a process meet this hub; its library reads it when it is imported."""
        return {
            "HF_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}",
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_XET": "1",
        }

    def start(self, code: str, *arguments: str, run: Callable[..., Any] = forked.Forked, **extra: str) -> Any:
        """Runs Python that meets this hub, where `extra` is to be read too in a process that has not imported the
        hub's library yet."""
        fresh = {"imported": forked.TORCH} if extra else {"preset": self.preset}
        env = os.environ | self.preset | {"AFINA_CACHE": str(self.cache)} | extra
        return run(arguments, self.home, env=env, code=code, **fresh)

    def run(self, code: str, *arguments: str, **extra: str) -> SimpleNamespace:
        return self.start(code, *arguments, run=forked.run, **extra)

    def kill_after(self, sent: int) -> None:
        """Begins to fetch the model, and kills the process when so many bytes of the weights were sent."""
        self.stalled.clear()
        self.stalls.append(sent)
        process = self.start(FETCH, str(self.cache))
        assert self.stalled.wait(60)
        time.sleep(0.2)  # so that it has written what it was sent
        process.send_signal(signal.SIGKILL)
        process.wait()

    def load(self, name: str, **extra: str) -> SimpleNamespace:
        return self.run(SMALL_CHUNKS + LOAD, name, **extra)

    def afina(self, *arguments: str, **extra: str) -> SimpleNamespace:
        return self.run("import sys; from afina.ui.cli import main; sys.exit(main())", *arguments, **extra)


SMALL_CHUNKS = "import huggingface_hub.constants as c; c.DOWNLOAD_CHUNK_SIZE = 4096"  # as is the model here
FETCH = f"""
{SMALL_CHUNKS}
import sys
from pathlib import Path
from afina.core.errors import BaseModelError
from afina.models.sources.hub import fetch_model
try:
    fetch_model("someone/tiny", None, Path(sys.argv[1]))
except BaseModelError as error:
    sys.exit(str(error))
"""
CLOSED = """
import os, sys
def no_socket(event, arguments):
    if event.startswith("socket."):
        print(event, flush=True)
        os._exit(9)
sys.addaudithook(no_socket)
"""
LOAD = """
import json, sys
from afina.models import load_base
from afina.core.errors import BaseModelError
try:
    print(json.dumps(load_base(sys.argv[1], precision="fp32").facts.card()))
except BaseModelError as error:
    print(error)
    sys.exit(2)
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("hub"))
    yield served
    served.close()


@pytest.fixture
def hub(served: Served, tiny_folder: Path) -> Served:
    served.begin(tiny_folder)
    (served.folder / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    (served.folder / "evil.bin").write_bytes(b"pickle")
    return served


def weights(home: Path) -> list[Path]:
    return list(home.rglob("snapshots/*/model.safetensors"))


def test_hub_then_offline_from_its_cache(hub: Served) -> None:
    first = hub.load("someone/tiny")
    assert first.returncode == 0, first.stdout + first.stderr
    facts = json.loads(first.stdout)
    assert (facts["hub_id"], facts["revision"], facts["licence"]) == ("someone/tiny", COMMIT, "mit")
    assert not list(hub.home.rglob("evil.bin"))
    missing = hub.load("someone/missing")
    assert missing.returncode == 2
    assert "does not exist on the hub" in missing.stdout
    gated = hub.load("someone/gated")
    assert gated.returncode == 2
    assert "accept" in gated.stdout
    hub.asked.clear()
    # Offline no socket is even made.
    closed = CLOSED + LOAD
    offline = hub.run(closed, "someone/tiny", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stdout + offline.stderr
    assert json.loads(offline.stdout) == facts
    unknown = hub.run(closed, "someone/other", HF_HUB_OFFLINE="1")
    assert unknown.returncode == 2, unknown.stderr
    assert "cannot be reached" in unknown.stdout
    assert not hub.asked


def test_a_download_cut_at_ten_places_goes_on_to_the_right_hash(hub: Served) -> None:
    hub.cuts = 10
    done = hub.load("someone/tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    assert hub.cuts == 0
    (file,) = weights(hub.home)
    assert file.read_bytes() == (hub.folder / "model.safetensors").read_bytes()


def test_a_download_that_is_killed_goes_on_where_it_was(hub: Served) -> None:
    whole = (hub.folder / "model.safetensors").read_bytes()
    draw = random.Random(5)
    sent = [draw.randrange(8_192, len(whole) // 6) for _ in range(3)]
    for each in sent:
        hub.kill_after(each)
    done = hub.run(FETCH, str(hub.cache))
    assert done.returncode == 0, done.stderr
    (file,) = weights(hub.home)
    assert file.read_bytes() == whole
    assert hub.ranges[0] is None
    begins = [int(each.removeprefix("bytes=").rstrip("-")) for each in hub.ranges[1:]]
    for begin, before, amount in zip(begins, [0, *begins], sent, strict=False):
        assert 0 <= before + amount - begin <= 2 * 4096  # no more than a chunk or two are sent twice
    assert len(begins) == len(sent)
    assert not list(hub.home.rglob("*.incomplete"))


def test_what_a_killed_download_left_is_not_believed(hub: Served) -> None:
    """The parts may be damaged, or too long; a server may not send the rest alone."""
    whole = (hub.folder / "model.safetensors").read_bytes()
    blobs = hub.home / "hub" / "models--someone--tiny" / "blobs"
    blobs.mkdir(parents=True)
    partial = blobs / f"{hashlib.sha256(whole).hexdigest()}.incomplete"
    for left, deaf in ((bytes(9_000), False), (whole + b"more", False), (whole[:9_000], True), (whole, False)):
        partial.write_bytes(left)
        hub.deaf = deaf
        done = hub.run(FETCH, str(hub.cache))
        assert done.returncode == 0, done.stderr
        (file,) = weights(hub.home)
        assert file.read_bytes() == whole
        shutil.rmtree(hub.cache / "verified")
        file.resolve().unlink()
        file.unlink()
    assert hub.ranges == ["bytes=9000-", None, None, "bytes=9000-"]  # the damaged one was begun anew


def test_corrupt_files_are_never_used(hub: Served) -> None:
    hub.corrupt = 2  # at first, and when it is fetched once more
    done = hub.load("someone/tiny")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "thrown away" in done.stdout
    assert not weights(hub.home)
    hub.corrupt = 1
    again = hub.load("someone/tiny")
    assert again.returncode == 0, again.stdout + again.stderr
    (file,) = weights(hub.home)
    assert file.read_bytes() == (hub.folder / "model.safetensors").read_bytes()


def test_caches_are_listed_and_cleaned(hub: Served) -> None:
    assert hub.load("someone/tiny").returncode == 0
    listed = hub.afina("models", "cache", "--json")
    assert listed.returncode == 0, listed.stderr
    (tiny,) = [each for each in json.loads(listed.stdout) if each["kind"] == "hub"]
    assert tiny["name"] == "someone/tiny"
    assert tiny["bytes"] > (hub.folder / "model.safetensors").stat().st_size
    assert "MB in all" in hub.afina("models", "cache").stdout
    gone = hub.afina("models", "cache", "someone/tiny", "--delete")
    assert "freed" in gone.stdout
    assert not weights(hub.home)
    again = hub.afina("models", "cache", "someone/tiny", "--delete")
    assert again.returncode == 2
    assert "nothing called" in again.stderr
    assert hub.afina("models", "list", "--delete").returncode == 2


SKELETON = """
import sys
from pathlib import Path
from afina.models.skeleton import read_skeleton
found = read_skeleton("someone/tiny", cache_dir=Path(sys.argv[1]))
print(found.is_local, found.parameters, found.file_bytes, found.revision, found.is_decoder)
"""


def test_a_skeleton_takes_the_headers_alone(hub: Served) -> None:
    done = hub.run(SKELETON, str(hub.home))
    assert done.returncode == 0, done.stderr
    is_local, parameters, size, revision, decoder = done.stdout.split()
    assert (is_local, revision, decoder) == ("False", COMMIT, "True")
    assert hub.ranges == ["bytes=0-100000"]
    assert not weights(hub.home)
    whole = (hub.folder / "model.safetensors").stat().st_size
    assert 0.9 * whole < int(size) < whole  # without the header
    assert int(parameters) == int(size) // 4
    again = hub.run(SKELETON, str(hub.home), HF_HUB_OFFLINE="1")
    assert again.returncode == 1
    assert "cannot be reached" in again.stderr


def test_a_run_is_pinned_to_the_commit_that_it_loaded(hub: Served, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"say {i}", "completion": str(i)}) + "\n" for i in range(30)))
    out = tmp_path / "run"
    done = hub.afina(
        "train", str(rows), "--base", "someone/tiny", "--out", str(out), "--train.rows", "8", "--threads", "1"
    )
    assert done.returncode == 0, done.stderr
    assert (
        f"revision: {COMMIT}" in (out / "config.yaml").read_text()
        or f"revision: '{COMMIT}'" in (out / "config.yaml").read_text()
    )
    assert json.loads((out / "adapter" / "afina.json").read_text())["load"] == {
        "name": "someone/tiny",
        "revision": COMMIT,
    }
