"""`GET /v1/models` and one of them: what can be asked for, and whose weights it has. No path is in it."""

from typing import Any, Literal

from afina.serving.http.body import Shape
from afina.serving.http.route import Call, Route
from afina.serving.service import ModelFacts, UnknownModel


class ModelAnswer(Shape):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int
    afina: dict[str, Any]


class ModelList(Shape):
    object: Literal["list"]
    data: list[ModelAnswer]


def shape_of(facts: ModelFacts) -> dict[str, Any]:
    return {
        "id": facts.id,
        "object": "model",
        "created": facts.created,
        "owned_by": "afina",
        "root": facts.root,
        "parent": facts.parent,
        "max_model_len": facts.max_model_len,
        "afina": {
            "hash": facts.hash,
            "base_hash": facts.base_hash,
            "fingerprint": facts.fingerprint,
            "generation": facts.generation,
            "bytes": facts.bytes,
            "rank": facts.rank,
            "form": facts.form,
            "task": facts.task,
            "template": facts.template,
            "pinned": facts.pinned,
            "requests": facts.requests,
            **({"labels": list(facts.labels)} if facts.labels else {}),
        },
    }


async def models(call: Call[Any]) -> dict[str, Any]:
    return {"object": "list", "data": [shape_of(facts) for facts in call.service.models()]}


async def model(call: Call[Any]) -> dict[str, Any]:
    name = call.request.path_params["id"]
    found = next((facts for facts in call.service.models() if facts.id == name), None)
    if found is None:
        call.service.open(name).close()  # which says what there is instead
        raise UnknownModel(f"there is no model {name!r}")
    return shape_of(found)


ROUTES = (
    Route("GET", "/v1/models", "The models that can be asked for", models, answer=ModelList),
    Route("GET", "/v1/models/{id:path}", "One of the models", model, answer=ModelAnswer),
)
