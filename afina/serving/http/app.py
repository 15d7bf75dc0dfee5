"""The application: the table of routes behind the guard."""

import re

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute

from afina.core.errors import near
from afina.serving.http.access import Access, Guard, Served
from afina.serving.http.errors import HttpError
from afina.serving.http.route import Context, Route, failure
from afina.serving.http.routes import ROUTES
from afina.serving.service import Service


def make_app(service: Service, access: Access, *, lenient: bool = False, ping_s: float = 10.0) -> Starlette:
    """The server's routes over `service`. A `lenient` server leaves out fields that it does not know, and says so;
    `ping_s` is of how many seconds' silence a stream says that it lives.

    `app.state.context` is what the requests share."""
    context = Context(service, lenient, ping_s)

    def served(found: Served) -> None:
        service.metrics().requests.add(1.0, found.model, found.route, str(found.status))
        if context.on_served:
            context.on_served(found)

    app = Starlette(
        routes=[_endpoint(route, context) for route in ROUTES],
        middleware=[Middleware(Guard, access=access, on_served=served)],
        exception_handlers={HTTPException: _not_routed, Exception: _failed},
    )
    app.router.redirect_slashes = False
    app.state.context = context
    return app


def _endpoint(route: Route, context: Context) -> StarletteRoute:
    async def endpoint(request: Request) -> Response:
        return await route(request, context)

    return StarletteRoute(route.path, endpoint, methods=[route.method])


async def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        there = [route for route in request.app.routes if route.path_regex.match(path)]
        allowed = ", ".join(sorted({method for route in there for method in route.methods}))
        message = f"{request.method} is not answered here, but {allowed}"
        return HttpError(405, message, "method_not_allowed", headers={"Allow": allowed}).response()
    known = [re.sub(r"[{:].*", "", route.path) for route in ROUTES]
    return HttpError(404, f"there is no route {path[:200]!r}.{near(path, known)}", "not_found").response()


async def _failed(request: Request, error: Exception) -> Response:
    return failure(error, Served("-", request.method, "unknown")).response()
