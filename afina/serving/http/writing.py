"""The answers that one request asks for, while they are written: several at a time, and each ends when the client goes,
when the engine fails, or by itself."""

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from afina.core.errors import counted
from afina.serving.http.body import Shape
from afina.serving.http.errors import invalid
from afina.serving.http.route import Context
from afina.serving.service import (
    FinishReason,
    Handle,
    Likelihood,
    Piece,
    QueueFull,
    ServiceFault,
    Stopping,
    Stream,
    Wanted,
)


@dataclass
class Written:
    """A whole answer. `finish_reason` is set once it is one."""

    text: str = ""
    tokens: list[Likelihood] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.tokens += piece.tokens
        if piece.finish_reason is not None:
            self.finish_reason, self.stop_reason = piece.finish_reason, piece.stop_reason


class Writing:
    """Answers in the order in which they were asked for; `close` ends those that are not complete."""

    def __init__(self, context: Context, streams: Sequence[Stream]) -> None:
        self.streams = list(streams)
        self.left = len(streams)  # answers that are not complete
        self._context = context
        self._queue: asyncio.Queue[tuple[int, Piece] | Exception] = asyncio.Queue()
        self._pumps = [asyncio.create_task(self._pump(i, stream)) for i, stream in enumerate(streams)]
        context.running.add(self)

    @classmethod
    async def begin(cls, context: Context, handle: Handle, wanted: Sequence[Wanted]) -> "Writing":
        """Raises `ServiceFault`; then none of them is written."""
        streams = list[Stream]()
        try:
            for each in wanted:
                streams.append(await handle.generate(each))
        except BaseException as error:
            for stream in streams:
                stream.cancel()
            if isinstance(error, QueueFull) and len(wanted) > error.most:
                raise invalid(f"{counted(len(wanted), 'answer')}, and this server takes {error.most}", "n") from error
            raise
        return cls(context, streams)

    def fail(self, error: Exception) -> None:
        """Whoever waits for the next piece gets this error."""
        self._queue.put_nowait(error)

    async def next(self, seconds: float | None = None) -> list[tuple[int, Piece]]:
        """All that came since, with the number of the answer, once there is something; nothing, where there was none
        for so many `seconds`. Raises `ServiceFault`, and what `fail` was given."""
        try:
            async with asyncio.timeout(seconds):
                found = [await self._queue.get()]
        except TimeoutError:
            return []
        while not self._queue.empty():
            found.append(self._queue.get_nowait())
        pieces = list[tuple[int, Piece]]()
        for each in found:
            if isinstance(each, Exception):
                raise each
            pieces.append(each)
            self.left -= each[1].finish_reason is not None
        return pieces

    async def whole(self) -> list[Written]:
        """All answers, complete. Raises as `next`."""
        found = [Written() for _ in self.streams]
        while self.left:
            for i, piece in await self.next():
                found[i].add(piece)
        return found

    def close(self) -> None:
        self._context.running.discard(self)
        for stream, pump in zip(self.streams, self._pumps, strict=True):
            stream.cancel()
            pump.cancel()

    async def _pump(self, index: int, stream: Stream) -> None:
        try:
            async for piece in stream:
                if piece.finish_reason == "cancelled":
                    raise Stopping("the model was unloaded, or the server ends")
                self._queue.put_nowait((index, piece))
                if piece.finish_reason is not None:
                    return
            raise ServiceFault("the answer broke off")
        except Exception as error:
            self._queue.put_nowait(error)


class Usage(Shape):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]


def head_of(prefix: str, object_: str, handle: Handle) -> dict[str, Any]:
    """What each part of an answer says of itself."""
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": object_,
        "created": int(time.time()),
        "model": handle.facts.id,
        "system_fingerprint": handle.facts.fingerprint,
    }


def usage_of(prompts: Sequence[int], streams: Sequence[Stream]) -> dict[str, Any]:
    """`prompts` are the lengths of the prompts, each of which has as many of the streams, one after another."""
    each = len(streams) // len(prompts)
    generated = sum(stream.generated_tokens for stream in streams)
    return {
        "prompt_tokens": sum(prompts),
        "completion_tokens": generated,
        "total_tokens": sum(prompts) + generated,
        "prompt_tokens_details": {"cached_tokens": sum(stream.cached_tokens for stream in streams[::each])},
    }


def timing_of(streams: Sequence[Stream]) -> dict[str, Any]:
    """Milliseconds, of the answer that took longest."""
    names = ("queue_ms", "prompt_ms", "generation_ms")
    return {name: round(max(getattr(stream, name) for stream in streams), 1) for name in names}
