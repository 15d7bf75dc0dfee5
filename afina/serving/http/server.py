"""Uvicorn around the application, with an orderly end."""

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from afina.core.events import Listener, Notice, ignore
from afina.core.text import json_text
from afina.serving.http.errors import HttpError
from afina.serving.http.route import Context
from afina.serving.http.sockets import taken

GRACE = 30.0  # seconds that what runs has to end by itself
_LOOKS, _LOOK = 40, 0.05  # for what is still being sent, and the seconds between them


def run(
    app: Starlette, held: socket.socket, *, listener: Listener = ignore, log_requests: bool = False,
    grace: float = GRACE,
) -> None:  # fmt: skip
    """Serves at `held`, which `bind` gave and which is closed in the end, until SIGTERM or SIGINT: then new requests
    get 503, those that run have `grace` seconds, and what still runs ends with an error. A second signal ends at once.
    `listener` hears of the address (of port 0 the one that was found) once requests are taken, and of each request
    where they are logged. Raises `SettingsError` where another took the address meanwhile."""
    context: Context = app.state.context
    if log_requests:
        context.on_served = lambda served: listener(Notice(str(served)))
    host, port = held.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, ws="none", lifespan="off", loop="asyncio",
        http=_Protocol, timeout_graceful_shutdown=1, proxy_headers=False,
    )  # fmt: skip
    server = _Server(config, context, grace)
    server.on_ready = lambda: listener(Notice(f"listening at http://{shown}:{port}"))
    with held:
        try:
            held.listen(config.backlog)
        except OSError as error:
            raise taken(host, port, error) from error
        server.run(sockets=[held])


class _Protocol(H11Protocol):
    """Uvicorn's, which would tell what is no HTTP in plain text."""

    def send_400_response(self, msg: str) -> None:
        body = json_text(HttpError(400, "this is no valid request of HTTP/1.1").shape).encode()
        headers = [
            ("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close"),
        ]  # fmt: skip
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class _Server(uvicorn.Server):
    """Uvicorn's, which would stop listening at the first signal, and kill itself with it in the end."""

    def __init__(self, config: uvicorn.Config, context: Context, grace: float) -> None:
        super().__init__(config)
        self.on_ready: Callable[[], None] = lambda: None
        self._context, self._grace = context, grace
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self.on_ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._context.stopping:
            self.should_exit = self.force_exit = True
        self._context.stopping = True

    async def on_tick(self, counter: int) -> bool:
        if self._context.stopping and self._draining is None:
            self._draining = asyncio.create_task(self._drain())
        return await super().on_tick(counter)

    async def _drain(self) -> None:
        """What runs ends, by itself or with an error; then the last of it is sent, and the connections are closed."""
        await self._context.service.stop(self._grace)
        for _ in range(_LOOKS):
            if not self._context.running:
                break
            await asyncio.sleep(_LOOK)
        self.should_exit = True
