"""`/v1/adapters`, and vLLM's two routes for its tools: an admin loads, replaces and unloads adapters."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from starlette.responses import PlainTextResponse, Response

from afina.serving.http.body import Body, Shape
from afina.serving.http.errors import invalid
from afina.serving.http.route import Call, Route
from afina.serving.http.routes.models import ModelAnswer, ModelList, shape_of

_Name = Annotated[str, Field(min_length=1, max_length=200)]
_Path = Annotated[str, Field(min_length=1, max_length=1000)]
_Generation = Annotated[int, Field(ge=0, lt=2**63)]
_LONGEST_WAIT = 3600.0  # seconds


class LoadBody(Body):
    name: _Name
    path: _Path | None = Field(None, description="a folder in one of those of --adapters; by default the name")
    run: _Path | None = Field(None, description="the folder of a run there")
    pin: bool = False
    replace: bool = False
    expected_generation: _Generation | None = None


class Unloaded(Shape):
    freed_bytes: int
    drained: bool


class VllmLoadBody(Body):
    lora_name: _Name
    lora_path: _Path
    load_inplace: bool = False
    expected_generation: _Generation | None = None


class VllmUnloadBody(Body):
    lora_name: _Name
    lora_int_id: int | None = Field(None, description="vLLM's; adapters are known by their names here")


async def adapters(call: Call[Any]) -> dict[str, Any]:
    found = [shape_of(facts) for facts in call.service.models() if facts.parent is not None]
    return {"object": "list", "data": found}


async def load(call: Call[LoadBody]) -> dict[str, Any]:
    asked = call.body
    if asked.path is not None and asked.run is not None:
        raise invalid("path and run contradict each other: give one of them", "run")
    folder = Path(asked.run or asked.path or asked.name)
    facts = await call.service.load(asked.name, folder, asked.pin, asked.replace, asked.expected_generation)
    call.served.model = facts.id
    return shape_of(facts)


async def unload(call: Call[Any]) -> dict[str, Any]:
    query, name = call.request.query_params, call.request.path_params["name"]
    if unknown := sorted(set(query) - {"expected_generation", "wait_s"}):
        raise invalid(f"there is no parameter {unknown[0]!r}", unknown[0], "unsupported_parameter")
    generation = query.get("expected_generation")
    if generation is not None and not (generation.isascii() and generation.isdecimal() and len(generation) < 19):
        raise invalid("expected_generation is no whole number", "expected_generation")
    try:
        wait = float(query.get("wait_s", "30"))
    except ValueError:
        wait = -1
    if not 0 <= wait <= _LONGEST_WAIT:
        raise invalid(f"wait_s is a number of seconds from 0 to {_LONGEST_WAIT:.0f}", "wait_s")
    freed, drained = await call.service.unload(name, None if generation is None else int(generation), wait)
    call.served.model = name
    return {"freed_bytes": freed, "drained": drained}


async def load_as_vllm(call: Call[VllmLoadBody]) -> Response:
    asked = call.body
    path, replace = Path(asked.lora_path), asked.load_inplace
    facts = await call.service.load(asked.lora_name, path, False, replace, asked.expected_generation)
    call.served.model = facts.id
    return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' added successfully.")


async def unload_as_vllm(call: Call[VllmUnloadBody]) -> Response:
    await call.service.unload(call.body.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{call.body.lora_name}' removed successfully.")


ROUTES = (
    Route("GET", "/v1/adapters", "The adapters that are loaded", adapters, answer=ModelList, admin=True),
    Route("POST", "/v1/adapters", "Loads or replaces an adapter", load, LoadBody, ModelAnswer, 201, admin=True),
    Route(
        "DELETE", "/v1/adapters/{name:path}", "Unloads an adapter", unload, answer=Unloaded, admin=True,
        query=(
            ("expected_generation", "refused with 409 where it is another", int),
            ("wait_s", "seconds that running requests have; then they are cancelled", float),
        ),
    ),
    Route("POST", "/v1/load_lora_adapter", "As vLLM's", load_as_vllm, VllmLoadBody, "text/plain", admin=True),
    Route("POST", "/v1/unload_lora_adapter", "As vLLM's", unload_as_vllm, VllmUnloadBody, "text/plain", admin=True),
)  # fmt: skip
