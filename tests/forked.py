"""Processes that begin with the libraries imported, which takes several seconds of processor time otherwise.

A server imports them once and forks a child for each command. A child has its own working directory, environment,
process group and signals, runs `afina.ui.cli.main` as `python -m afina` does (or `code`, as `python -c`), and ends
as a process does; only the imports are shared. What is tested of imports themselves, or of a process's end, needs a
process of its own.
"""

import atexit
import json
import os
import select
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
from typing import Any

EVERYTHING = (
    "transformers.modeling_utils",
    "afina.runs.training",
    "afina.jobs.train",
    "afina.jobs.generate",
    "afina.ui.cli",
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


class Forked:
    """A command that runs in a child of the server; used like `subprocess.Popen`. `stdout` and `stderr` are files to
    write to."""

    def __init__(
        self,
        arguments: Sequence[str],
        cwd: Path | None = None,
        stdout: Any = None,
        stderr: Any = None,
        imported: tuple[str, ...] = EVERYTHING,
        **more: Any,
    ) -> None:
        """`more`: `env`, `code` to run instead of a command, `file_limit` in bytes."""
        request = {"argv": list(arguments), "cwd": str(cwd or Path.cwd()), "env": dict(os.environ), **more}
        address = _server(imported)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(address)
        payload = json.dumps(request).encode()
        with open(os.devnull, "w") as null:
            files = [(file or null).fileno() for file in (stdout, stderr)]
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


def run(arguments: Sequence[str], folder: Path, **options: Any) -> SimpleNamespace:
    """Runs a command to its end; its `returncode`, and `stdout` and `stderr` as text where they go to no file of
    `options`."""
    texts: dict[str, str | None] = {"stdout": None, "stderr": None}
    own = {name: (folder / f".{name}.{time.monotonic_ns()}").open("w+") for name in texts if name not in options}
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
def _server(imported: tuple[str, ...]) -> str:
    """The address of the server that has these modules, which is started when it is first needed."""
    address = str(Path(tempfile.mkdtemp(prefix="afina-")) / "server")
    process = subprocess.Popen([sys.executable, __file__, address, *imported], stdin=subprocess.PIPE)
    atexit.register(process.terminate)
    while True:
        with socket.socket(socket.AF_UNIX) as connection:
            if process.poll() is not None:
                raise RuntimeError("the server of processes did not start")
            if connection.connect_ex(address) == 0:
                return address
        time.sleep(0.05)


def _serve(address: str, *imported: str) -> None:
    import gc
    import importlib

    threading.Thread(target=_end_with_parent, daemon=True).start()
    server = socket.socket(socket.AF_UNIX)
    for name in imported:
        importlib.import_module(name)
    gc.freeze()
    server.bind(address)
    server.listen()
    while True:
        connection, _ = server.accept()
        head, files, *_ = socket.recv_fds(connection, 4, 2)
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
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, file in enumerate(files, 1):
            os.dup2(file, number)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        if "file_limit" in request:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"],) * 2)
        sys.argv = ["-c" if "code" in request else "afina", *request["argv"]]
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


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
