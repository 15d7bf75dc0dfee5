"""Chats handed to a server of Afina's on this machine: what is asked goes out, and its bytes come back as they come.

Only 127.0.0.1 is asked. Who leaves while an answer is written closes the connection, on which the server leaves off.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import h11
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from afina.core.limits import REPLY_BYTES
from afina.core.text import json_text
from afina.serving.http.errors import HttpError
from afina.serving.http.route import gone
from afina.ui.studio.words import Refused

_HOST = "127.0.0.1"
_CONNECT = 5.0  # seconds
_READ = 1 << 16  # bytes at once


class Exchange:
    """One request and its answer, of which `status` and `kind` (content type) are known once it has begun."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.status, self.kind, self.is_closed = 0, "", False
        self._reader, self._writer = reader, writer
        self._connection = h11.Connection(h11.CLIENT)

    def send(self, request: h11.Request, body: bytes) -> None:
        for event in (request, h11.Data(data=body), h11.EndOfMessage()):
            self._writer.write(self._connection.send(event) or b"")

    def close(self) -> None:
        """At once, whatever is still to come: who waits for it gets `Refused`."""
        self.is_closed = True
        self._writer.transport.abort()

    async def begin(self) -> None:
        """Waits for the head of the answer. Raises `Refused`."""
        event = await self._next()
        while not isinstance(event, h11.Response):
            event = await self._next()
        self.status = event.status_code
        self.kind = next((value.decode("latin-1") for name, value in event.headers if name == b"content-type"), "")

    async def parts(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises `Refused` where it breaks off."""
        while not isinstance(event := await self._next(), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                yield bytes(event.data)

    async def whole(self) -> Any:
        """All of a body of JSON. Raises `Refused`."""
        content = bytearray()
        async for part in self.parts():
            content += part
            if len(content) > REPLY_BYTES:
                raise Refused("chat_odd")
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise Refused("chat_odd") from error

    async def _next(self) -> Any:
        try:
            while (event := self._connection.next_event()) is h11.NEED_DATA:
                self._connection.receive_data(await self._reader.read(_READ))
        except (h11.RemoteProtocolError, OSError) as error:
            raise Refused("chat_ended") from error
        if isinstance(event, h11.ConnectionClosed):
            raise Refused("chat_ended")
        return event


@dataclass(frozen=True)
class Server:
    """What listens at a `port` of this machine, and the `key` that it wants."""

    port: int
    key: str

    async def ask(self, path: str, body: dict[str, Any] | None = None) -> Exchange:
        """Sends a request: a POST where it has a body. Raises `Refused` where nobody listens."""
        try:
            async with asyncio.timeout(_CONNECT):
                reader, writer = await asyncio.open_connection(_HOST, self.port)
        except (OSError, TimeoutError) as error:
            raise Refused("chat_ended") from error
        content = b"" if body is None else json_text(body).encode()
        headers = [
            ("host", f"{_HOST}:{self.port}"), ("authorization", f"Bearer {self.key}"), ("connection", "close"),
            ("content-type", "application/json"), ("content-length", str(len(content))),
        ]  # fmt: skip
        exchange = Exchange(reader, writer)
        exchange.send(h11.Request(method="GET" if body is None else "POST", target=path, headers=headers), content)
        return exchange

    async def told(self, request: Request, path: str, bodies: Sequence[dict[str, Any] | None]) -> list[Any]:
        """The answers to several requests, which are asked at one time: each its JSON. Raises `Refused`."""

        async def whole(exchange: Exchange) -> Any:
            await exchange.begin()
            return await exchange.whole()

        exchanges: list[Exchange] = []
        async with while_there(request, exchanges):
            for body in bodies:
                exchanges.append(await self.ask(path, body))
            return list(await asyncio.gather(*map(whole, exchanges)))


@asynccontextmanager
async def while_there(request: Request, exchanges: Sequence[Exchange]) -> AsyncIterator[None]:
    """Closes the exchanges at the end of the block, or as soon as who made the request has gone."""

    def close(_: Any = None) -> None:
        for each in exchanges:
            each.close()

    leaving = asyncio.ensure_future(gone(request))
    leaving.add_done_callback(close)
    try:
        yield
    finally:
        leaving.cancel()
        close()


class Relayed(Response):
    """The answer of an exchange, byte for byte, for as long as who asked is there."""

    def __init__(self, request: Request, exchange: Exchange) -> None:
        super().__init__()
        self.request, self.exchange = request, exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = self.exchange
        async with while_there(self.request, [exchange]):
            try:
                await exchange.begin()
                await send({"type": "http.response.start", "status": exchange.status, "headers": self._named()})
                async for part in exchange.parts():
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            except Refused as error:
                if not exchange.is_closed:  # else nobody is there to be told
                    await self._tell(HttpError(502, str(error)), scope, receive, send)

    def _named(self) -> list[tuple[bytes, bytes]]:
        """The headers."""
        kind = self.exchange.kind.encode("latin-1")
        return [(b"content-type", kind), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]

    async def _tell(self, error: HttpError, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.exchange.status:
            await error.response()(scope, receive, send)
            return
        frame = b"data: " + json_text(error.shape).encode() + b"\n\n"
        await send({"type": "http.response.body", "body": frame})
