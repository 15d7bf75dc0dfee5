"""`POST /v1/classify`: the label of each text, and the probability of every label."""

from contextlib import closing
from typing import Annotated, Any, Literal

from pydantic import Field

from afina.core.errors import counted
from afina.data.template import prompt_ids
from afina.serving.http.asking import Text
from afina.serving.http.body import Body, Shape
from afina.serving.http.errors import invalid
from afina.serving.http.prompts import beside
from afina.serving.http.route import Call, Route
from afina.serving.http.writing import head_of


class ClassifyBody(Body):
    model: Annotated[str, Field(min_length=1, max_length=500)]
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=1024)]


class Labelled(Shape):
    index: int
    label: str
    probabilities: dict[str, float]


class Classes(Shape):
    id: str
    object: Literal["list"]
    created: int
    model: str
    system_fingerprint: str
    data: list[Labelled]
    usage: dict[str, int]


async def classify(call: Call[ClassifyBody]) -> dict[str, Any]:
    asked = call.body
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    with closing(call.open(asked.model)) as handle:
        if not handle.facts.labels:
            raise invalid(f"{handle.facts.id!r} is no classifier: ask it at /v1/chat/completions", "model")
        tokenizer = handle.tokenizer
        prompts = await beside(
            sum(map(len, texts)),
            lambda: [prompt_ids(tokenizer, [{"role": "user", "content": text}]) for text in texts],
        )
        most = handle.facts.max_model_len
        for number, ids in enumerate(prompts):
            if not ids:
                raise invalid(f"input {number} is empty", "input")
            if len(ids) > most:
                raise invalid(
                    f"the context of {handle.facts.id!r} has {counted(most, 'token')}; input {number} has {len(ids):,}",
                    "input",
                    "context_length_exceeded",
                )
        found = await call.unless_gone(handle.classify(prompts))
        tokens = sum(map(len, prompts))
        call.served.prompt_tokens = tokens
        return {
            **head_of("classify", "list", handle),
            "data": [
                {"index": i, "label": max(each, key=each.__getitem__), "probabilities": each}
                for i, each in enumerate(found)
            ],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }


ROUTES = Route("POST", "/v1/classify", "The class of each text", classify, ClassifyBody, Classes)
