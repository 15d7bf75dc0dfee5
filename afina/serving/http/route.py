"""What a route is, and what a handler gets: a table of them is in `routes/`, a file for each family."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from afina.serving.http.access import ANSWERED, REFUSED, Served
from afina.serving.http.body import Body, Shape, built, prompt_field, read_json
from afina.serving.http.errors import HttpError, JsonResponse, error_of, without_paths
from afina.serving.service import Handle, Service, Stopping, UnknownModel

B = TypeVar("B", bound=Body)
T = TypeVar("T")
_LOG = logging.getLogger("afina.serving")
_GONE = 499  # for the log alone: nobody reads an answer


@dataclass
class Context:
    """What all requests share. `running` are the answers that are being written; `stopping` refuses what is new;
    `on_served` hears of each request when it is over."""

    service: Service
    lenient: bool = False
    ping_s: float = 10.0  # of silence, after which a stream says that it lives
    stopping: bool = False
    running: set[object] = field(default_factory=set)
    on_served: Callable[[Served], None] | None = None


@dataclass(frozen=True)
class Call(Generic[B]):
    """One request, of which the body is read. `ignored` are fields that nobody knows."""

    request: Request
    context: Context
    body: B
    ignored: list[str]

    @property
    def service(self) -> Service:
        return self.context.service

    @property
    def served(self) -> Served:
        found: Served = self.request.scope[ANSWERED]
        return found

    def open(self, name: str) -> Handle:
        """The model of this name, for as long as the request. Raises `HttpError` for one that is unknown."""
        try:
            handle = self.service.open(name)
        except UnknownModel as error:
            raise HttpError(404, without_paths(str(error), name), "model_not_found", "model") from error
        self.served.model = handle.facts.id
        return handle

    async def unless_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` gives, which is cancelled when the client goes. Raises `ClientDisconnect` then."""
        working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone(self.request))
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ClientDisconnect
            return working.result()
        finally:
            for task in (working, leaving):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task


async def gone(request: Request) -> None:
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True)
class Route:
    """A method and path, and what answers it: a model of what is asked (None: nothing), and of what is answered, or its
    media type. `needs_ready`: it is refused while the server loads or ends."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    summary: str
    handler: Callable[[Call[Any]], Awaitable[Response | dict[str, Any]]]
    body: type[Body] | None = None
    answer: type[Shape] | str = "application/json"
    status: int = 200
    admin: bool = False
    streams: bool = False
    needs_ready: bool = True
    query: tuple[tuple[str, str, type], ...] = ()  # name, meaning, type

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    async def __call__(self, request: Request, context: Context) -> Response:
        served: Served = request.scope[ANSWERED]
        served.route = self.path
        try:
            if self.admin and (refused := request.scope[REFUSED]) is not None:
                raise refused
            state = "stopping" if context.stopping else context.service.state
            if self.needs_ready and state != "ready":
                raise Stopping("the server is loading" if state == "loading" else "the server ends")
            body, ignored = Body(), list[str]()
            if self.body is not None:
                body, ignored = built(self.body, await read_json(request), context.lenient)
            if self.needs_ready and (self.method == "GET" or hasattr(body, "model")):
                await context.service.look(getattr(body, "model", None))
            answer = await self.handler(Call(request, context, body, ignored))
            return answer if isinstance(answer, Response) else JsonResponse(answer, self.status)
        except ClientDisconnect:
            served.status = _GONE
            return Response(status_code=_GONE)
        except Exception as error:
            return (error_of(error, prompt_field(self.body)) or failure(error, served)).response()


def failure(error: Exception, served: Served) -> HttpError:
    """What a client is told of a bug, whose trace is in the server's log alone."""
    _LOG.error("request %s failed", served.id, exc_info=error)
    return HttpError(500, f"the server failed on this request; its log says why, under {served.id}")
