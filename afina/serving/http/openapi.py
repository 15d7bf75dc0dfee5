"""The description of the API (OpenAPI 3.1), written from the table of routes and the models of their bodies."""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from afina.serving.http.access import OPEN
from afina.serving.http.route import Route
from afina.version import __version__

_REFERENCE = "#/components/schemas/{model}"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_TYPES = {int: "integer", float: "number", str: "string"}


def description(routes: Sequence[Route]) -> dict[str, Any]:
    bodies = [(route.body, "validation") for route in routes if route.body]
    answers = [(route.answer, "serialization") for route in routes if not isinstance(route.answer, str)]
    references, found = models_json_schema([*bodies, *answers], ref_template=_REFERENCE)  # type: ignore[list-item]
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = re.sub(r":path\}", "}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, references)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Afina", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {**found.get("$defs", {}), "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route, references: dict[Any, Any]) -> dict[str, Any]:
    def content(model: type[BaseModel] | str, mode: str) -> dict[str, Any]:
        if isinstance(model, str):
            return {model: {"schema": {"type": "object" if model == "application/json" else "string"}}}
        return {"application/json": {"schema": references[model, mode]}}

    answers = content(route.answer, "serialization")
    if route.streams:
        answers["text/event-stream"] = {"schema": {"type": "string"}}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    named = re.findall(r"\{(\w+)", route.path)
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", route.name).strip("_"),
        "summary": route.summary,
        "parameters": [
            *({"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in named),
            *(
                {"name": name, "in": "query", "description": text, "schema": {"type": _TYPES[kind]}}
                for name, text, kind in route.query
            ),
        ],
        "responses": {
            str(route.status): {"description": "as asked", "content": answers},
            "default": {"description": "an error", "content": error},
        },
        "security": [] if route.path in OPEN else [{"key": []}],
    }
    if route.path == "/health":
        operation["responses"]["503"] = {"description": "loading or stopping", "content": answers}
    if route.body:
        operation["requestBody"] = {"required": True, "content": content(route.body, "validation")}
    return operation
