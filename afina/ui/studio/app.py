"""The application: the routes of all pages behind the guard."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from inspect import iscoroutinefunction
from socket import socket
from typing import Any
from urllib.parse import parse_qsl

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route as StarletteRoute
from starlette.types import ASGIApp

from afina.core.errors import AfinaError
from afina.core.limits import REQUEST_BYTES
from afina.measure.pages.rendering import TEMPLATES
from afina.serving.http.body import parse
from afina.serving.http.errors import HttpError
from afina.ui.studio.guard import BYTES, FORM, JSON, Guard, Keys
from afina.ui.studio.pages import PAGES
from afina.ui.studio.view import Call, Route, Studio
from afina.ui.studio.words import HERE, Refused
from afina.ui.studio.work import Queue
from afina.ui.studio.workspace import Workspace

_LOG = logging.getLogger("afina.studio")
_LOOKS = 0.5  # seconds between two looks at what may start
_STATIC = {
    "page.css": "text/css", "studio.css": "text/css", "studio.js": "text/javascript", "icon.svg": "image/svg+xml",
}  # fmt: skip


def serve(workspace: Workspace, token: str, held: socket) -> None:
    """Serves the pages at a socket that listens, until SIGINT or SIGTERM."""
    studio = Studio(workspace, Queue(workspace.work), Keys(workspace.secret(), token))
    config = uvicorn.Config(  # what fails is told of by the application
        make_app(studio), log_config=None, log_level="critical", access_log=False, server_header=False, ws="none",
        loop="asyncio", timeout_graceful_shutdown=1, proxy_headers=False,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[held])


def make_app(studio: Studio) -> ASGIApp:
    """The pages of a workspace, behind the guard. While it serves, it starts the work that waits."""

    @asynccontextmanager
    async def serving(app: Starlette) -> AsyncIterator[None]:
        looking = asyncio.create_task(_keep_looking(studio))
        yield
        looking.cancel()

    async def failed(request: Request, error: Exception) -> Response:
        _LOG.error("a page failed", exc_info=error)
        return Call(studio, request, {}).refusal(Refused("failed", 500))

    async def absent(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 404
        return Call(studio, request, {}).refusal(Refused("no_page", status, path=request.url.path[:200]))

    routes = [_endpoint(studio, route) for page in PAGES for route in page.routes]
    app = Starlette(
        routes=[*routes, StarletteRoute("/static/{name}", _static)],
        exception_handlers={HTTPException: absent, Exception: failed},
        lifespan=serving,
    )
    app.router.redirect_slashes = False
    return Guard(app, studio.keys)  # around what tells of failures too


async def _keep_looking(studio: Studio) -> None:
    while True:
        try:
            await run_in_threadpool(studio.queue.look)
        except Exception as error:  # a folder that somebody damaged does not keep all others waiting
            _LOG.error("the work cannot be looked at", exc_info=error)
        await asyncio.sleep(_LOOKS)


def _endpoint(studio: Studio, route: Route) -> StarletteRoute:
    async def endpoint(request: Request) -> Response:
        call = Call(studio, request, dict(request.query_params))
        try:
            if request.method == "POST":
                call = Call(studio, request, await _fields(studio, request))
            if iscoroutinefunction(route.handler):
                found: Response = await route.handler(call)
            else:
                found = await run_in_threadpool(_handled, route, call)
            return found
        except AfinaError as error:
            return await run_in_threadpool(call.refusal, error)
        except ClientDisconnect:
            return Response(status_code=499)

    return StarletteRoute(route.path, endpoint, methods=[route.method])


def _handled(route: Route, call: Call) -> Any:
    with call.studio.changing if route.method == "POST" else nullcontext():
        return route.handler(call)


async def _fields(studio: Studio, request: Request) -> Mapping[str, Any]:
    """What a form or a JSON object says; nothing of a file that is brought. Raises `Refused`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == BYTES:
        return {}
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > REQUEST_BYTES:
            raise Refused("form_large", 413)
    if kind == JSON:
        with suppress(HttpError):  # what is wrong with it, no person wrote
            if isinstance(found := parse(bytes(content)), dict):
                return found
        raise Refused("form_unread")
    assert kind == FORM
    try:
        fields = parse_qsl(content.decode(), keep_blank_values=True, strict_parsing=bool(content), max_num_fields=500)
    except ValueError:
        raise Refused("form_unread") from None
    found = dict(fields)
    if found.pop("form_token", "") != studio.keys.form:
        raise Refused("form_foreign", 403)
    return found


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _STATIC:
        raise HTTPException(404)
    folder = TEMPLATES if name == "page.css" else HERE / "static"  # the stylesheet that reports have too lies with them
    return FileResponse(folder / name, media_type=_STATIC[name], headers={"cache-control": "no-cache"})
