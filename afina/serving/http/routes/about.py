"""`/health`, `/version`, `/metrics` and `/openapi.json`: the server about itself."""

from typing import Any

from starlette.responses import Response

from afina.serving.http.body import Shape
from afina.serving.http.errors import JsonResponse
from afina.serving.http.openapi import description
from afina.serving.http.route import Call, Route
from afina.version import __version__


class Health(Shape):
    status: str


class Version(Shape):
    version: str


async def health(call: Call[Any]) -> Response:
    state = "stopping" if call.context.stopping else call.service.state
    return JsonResponse({"status": "ok" if state == "ready" else state}, 200 if state == "ready" else 503)


async def version(call: Call[Any]) -> dict[str, Any]:
    return {"version": __version__}


async def metrics(call: Call[Any]) -> Response:
    text: str = call.service.metrics().text()
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def openapi(call: Call[Any]) -> dict[str, Any]:
    from afina.serving.http.routes import ROUTES  # late: this file is read for that table

    return description(list(ROUTES))


ROUTES = (
    Route("GET", "/health", "Whether the server answers", health, answer=Health, needs_ready=False),
    Route("GET", "/version", "Which version this is", version, answer=Version, needs_ready=False),
    Route("GET", "/metrics", "Numbers for Prometheus", metrics, answer="text/plain", needs_ready=False),
    Route("GET", "/openapi.json", "This description", openapi, needs_ready=False),
)
