"""Processes that begin with the libraries imported, which takes several seconds of processor time otherwise.

A server imports them once and forks a child for each command. A child has its own working directory, environment,
process group and signals, runs `afina.ui.cli.main` as `python -m afina` does (or `code`, as `python -c`), and ends
as a process does; only the imports are shared. What is tested of imports themselves, or of a process's end, needs a
process of its own. The workers of pytest-xdist share the servers; they end when those who use them do.
"""

import fcntl
import hashlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

EVERYTHING = (
    "transformers.modeling_utils",
    "transformers.convert_slow_tokenizer",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.configuration_llama",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "rich.progress",
    "scipy.special",
    "afina.runs.training",
    "afina.search.base_trial",
    "afina.search.method_runs",
    "afina.jobs.resume",
    "afina.jobs.train",
    "afina.jobs.generate",
    "afina.jobs.serve",
    "afina.ui.cli",
    "afina.ui.commands.train",
    "afina.ui.progress",
    "afina.ui.studio.app",
)
# What takes long of transformers' imports, without itself and the hub's library, which read the environment when
# imported.
TORCH = (
    "torch",
    "torch._dynamo",
    "torch.distributed.tensor",
    "numpy",
    "pydantic",
    "yaml",
    "tokenizers",
    "safetensors.torch",
)


_RUN = "FORKED_RUN"  # in the environment: which servers are those of this run
_started: list[subprocess.Popen[bytes]] = []  # the servers that are ours


class Forked:
    """A command that runs in a child of the server; used like `subprocess.Popen`. `stdin`, `stdout` and `stderr` are
    files; `preset` is the environment in which the server imports."""

    def __init__(
        self,
        arguments: Sequence[str],
        cwd: Path | None = None,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        imported: tuple[str, ...] = EVERYTHING,
        preset: dict[str, str] | None = None,
        **more: Any,
    ) -> None:
        """`more`: `env`, `code` to run instead of a command, `file_limit` in bytes."""
        address = _server(imported, tuple(sorted((preset or {}).items())))
        env = {**more.pop("env", os.environ), _RUN: os.environ[_RUN]}
        request = {"argv": list(arguments), "cwd": str(cwd or Path.cwd()), "env": env, **more}
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(address)
        payload = json.dumps(request).encode()
        with open(os.devnull, "r+") as null:
            files = [(file or null).fileno() for file in (stdin, stdout, stderr)]
            socket.send_fds(self._socket, [len(payload).to_bytes(4, "big")], files)
        self._socket.sendall(payload)
        self.pid = int.from_bytes(_read(self._socket, 4), "big")
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._socket], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = int.from_bytes(_read(self._socket, 4), "big", signed=True)
            self._socket.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it ended meanwhile
            if self.poll() is None:
                os.kill(self.pid, number)


class ForkedWorker(Forked):
    """As `afina.runs.worker` starts its children, which then have the libraries."""

    def __init__(self, command: Sequence[str], **_: Any) -> None:
        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        self.stdin, self.stdout = open(ours_in, "w"), open(ours_out)  # noqa: SIM115
        with open(theirs_in) as stdin, open(theirs_out, "w") as stdout:
            super().__init__(command[-1:], stdin=stdin, stdout=stdout, code="import afina.runs.worker as w; w._main()")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self.stdin.close()
        self.stdout.close()

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(arguments: Sequence[str], folder: Path, **options: Any) -> SimpleNamespace:
    """Runs a command to its end; its `returncode`, and `stdout` and `stderr` as text where they go to no file of
    `options`."""
    texts: dict[str, str | None] = {"stdout": None, "stderr": None}
    reading = {"encoding": "utf-8", "errors": "surrogateescape"}  # of other encodings some bytes are none of it
    own = {
        name: (folder / f".{name}.{time.monotonic_ns()}").open("w+", **reading) for name in texts if name not in options
    }
    process = Forked(arguments, **{**own, **options})
    code = process.wait()
    for name, file in own.items():
        file.seek(0)
        texts[name] = file.read()
        file.close()
        os.unlink(file.name)
    return SimpleNamespace(returncode=code, **texts)


def _read(connection: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        part = connection.recv(count - len(found))
        if not part:
            raise ConnectionError("the server of processes ended")
        found += part
    return found


@cache
def _server(imported: tuple[str, ...], preset: tuple[tuple[str, str], ...]) -> str:
    """The address of the server that has these modules, which is started when it is first needed."""
    xdist = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    owner = os.getppid() if xdist else os.getpid()
    run = os.environ.setdefault(_RUN, xdist or str(owner))  # children that start others use the same server
    name = hashlib.sha256(repr((run, imported, preset)).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"afina-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    address = str(folder / "server")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(address):
            command = [sys.executable, __file__, address, str(owner), *imported]
            process = subprocess.Popen(command, env=os.environ | dict(preset), stdin=subprocess.DEVNULL)
            _started.append(process)
            while not os.path.exists(address):
                if process.poll() is not None:
                    raise RuntimeError("the server of processes did not start")
                time.sleep(0.05)
    return address


def _serve(address: str, owner: str, *imported: str) -> None:
    import gc
    import importlib

    threading.Thread(target=_end_with, args=(int(owner), Path(address).parent), daemon=True).start()
    server = socket.socket(socket.AF_UNIX)
    for name in imported:
        importlib.import_module(name)
    gc.freeze()
    server.bind(f"{address}.new")
    server.listen()
    os.rename(f"{address}.new", address)
    while True:
        connection, _ = server.accept()
        head, files, *_ = socket.recv_fds(connection, 4, 3)
        if not head:
            connection.close()
            continue
        request = json.loads(_read(connection, int.from_bytes(head, "big")))
        pid = os.fork()
        if pid == 0:
            _child(request, files, (server, connection))
        for file in files:
            os.close(file)
        connection.sendall(pid.to_bytes(4, "big"))
        threading.Thread(target=_report, args=(pid, connection), daemon=True).start()


def _report(pid: int, connection: socket.socket) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with connection:
        connection.sendall(code.to_bytes(4, "big", signed=True))


def _child(request: dict[str, Any], files: list[int], sockets: Sequence[socket.socket]) -> None:
    code = 1
    try:
        for each in sockets:
            each.close()
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # which the server may have been started with
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        if "file_limit" in request:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"],) * 2)
        sys.argv = ["-c" if "code" in request else "afina", *request["argv"]]
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        if "code" in request:
            exec(request["code"], {"__name__": "__main__"})
            code = 0
        else:
            from afina.ui.cli import main

            code = main()
        sys.stdout.flush()
    except SystemExit as error:
        sys.stdout.flush()
        code = int(error.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _end_with(owner: int, folder: Path) -> None:
    with suppress(ProcessLookupError):
        while True:
            os.kill(owner, 0)
            time.sleep(0.5)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
