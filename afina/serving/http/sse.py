"""Answers as server-sent events, in OpenAI's order of frames."""

import asyncio
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, Protocol

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from afina.core.text import json_text
from afina.serving.http.errors import error_of
from afina.serving.http.route import Call, failure, gone
from afina.serving.http.writing import Writing
from afina.serving.service import Piece

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_PING = b": ping\n\n"
_DONE = b"data: [DONE]\n\n"
Frame = dict[str, Any]


class Chunks(Protocol):
    """Makes frames of pieces."""

    def first(self) -> Iterable[Frame]:
        """Before all pieces."""

    def of(self, index: int, piece: Piece) -> Iterable[Frame]:
        """Of a piece of one answer."""

    def last(self) -> Iterable[Frame]:
        """After the last piece of all answers."""


class EventStream(Response):
    """`pieces` came before the headers are sent; `held` is given up when the stream has ended, however it does."""

    def __init__(
        self, call: Call[Any], writing: Writing, chunks: Chunks, pieces: list[tuple[int, Piece]], held: ExitStack
    ) -> None:
        super().__init__()
        self.call, self.writing, self.chunks, self.pieces, self.held = call, writing, chunks, pieces, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        leaving = asyncio.ensure_future(gone(self.call.request))
        leaving.add_done_callback(self._left)

        async def sent(body: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more})

        try:
            await send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS]})
            await sent(_framed(self.chunks.first()) + (self._of(self.pieces) if self.pieces else _PING))
            while self.writing.left:
                pieces = await self.writing.next(self.call.context.ping_s)
                await sent(self._of(pieces) if pieces else _PING)
            await sent(_framed(self.chunks.last()) + _DONE, more=False)
        except ClientDisconnect:
            self.call.served.status = 499
        except Exception as error:
            told = error_of(error) or failure(error, self.call.served)
            self.call.served.status = told.status
            await sent(_framed([told.shape]), more=False)
        finally:
            self.held.close()
            leaving.cancel()

    def _left(self, leaving: "asyncio.Future[None]") -> None:
        if not leaving.cancelled():
            self.writing.fail(ClientDisconnect())

    def _of(self, pieces: list[tuple[int, Piece]]) -> bytes:
        return b"".join(_framed(self.chunks.of(index, piece)) for index, piece in pieces)


def _framed(frames: Iterable[Frame]) -> bytes:
    return b"".join(b"data: " + json_text(frame).encode() + b"\n\n" for frame in frames)
