"""The body of a request: how much is read of it, as what, and what becomes of a field that nobody knows."""

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from afina.core.limits import REQUEST_BYTES, REQUEST_NESTING, REQUEST_SECONDS
from afina.serving.http.errors import HttpError, invalid, only_unknown, unfit


class Body(BaseModel):
    """The root of what is asked. Types are meant as they are written: "5" is no number."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=(), allow_inf_nan=False)


class Shape(BaseModel):
    """The root of what is answered, from which the description of the API is written."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


B = TypeVar("B", bound=Body)
_PROMPTS = ("messages", "prompt", "input", "content", "tokens")


def prompt_field(kind: type[Body] | None) -> str | None:
    """The field that has what the model is asked."""
    return next((name for name in _PROMPTS if kind and name in kind.model_fields), None)


async def read_json(request: Request) -> Any:
    """The JSON of a request. Raises `HttpError` 400, 413, 415, and `ClientDisconnect`."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        given = f"not {kind!r}" if kind else "and none is given"
        raise HttpError(415, f"the content type has to be application/json, {given}")
    large = HttpError(413, f"a request has up to {REQUEST_BYTES >> 20} MB")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > REQUEST_BYTES):
        raise large
    content = bytearray()
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            async for part in request.stream():
                content += part
                if len(content) > REQUEST_BYTES:
                    raise large
    except TimeoutError:
        raise HttpError(408, f"the body did not arrive within {REQUEST_SECONDS:.0f} s") from None
    return parse(bytes(content))


def parse(content: bytes) -> Any:
    """Raises `HttpError` for what is no JSON, or is nested too deeply, or holds half a character."""
    try:
        value = json.loads(content.decode(), parse_constant=_no_number)
        if b"\\u" in content:
            json.dumps(value, ensure_ascii=False).encode()  # half a character (a lone surrogate) is no text
    except RecursionError:
        raise _too_deep() from None
    except (ValueError, MemoryError) as error:
        raise invalid(f"the body is no valid JSON in UTF-8: {_reason(error)}", code="invalid_json") from None
    _check_nesting(value)
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    if isinstance(error, UnicodeEncodeError):
        return "it holds half of a character"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start + 1} is not UTF-8"
    return "a number in it has too many digits" if "digits" in str(error) else str(error)[:100]


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _too_deep() -> HttpError:
    return invalid(f"the body is nested more than {REQUEST_NESTING} levels deep", code="invalid_json")


def _check_nesting(value: Any) -> None:
    level = [value]
    for _ in range(REQUEST_NESTING):
        held = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [each for items in held for each in items if type(each) in (dict, list, float)]
        if any(type(each) is float and not math.isfinite(each) for each in level):
            raise invalid("a number in the body is too large", code="invalid_json")
        if not level:
            return
    raise _too_deep()


def built(kind: type[B], value: Any, lenient: bool) -> tuple[B, list[str]]:
    """The request, and the fields in it that nobody knows, which are left out where the server is `lenient`. Raises
    `HttpError`."""
    if not isinstance(value, dict):
        raise invalid("the body has to be a JSON object")
    try:
        return kind.model_validate(value), []
    except ValidationError as error:
        ignored = only_unknown(error) if lenient else []
        if not ignored:
            raise unfit(error, value, known_fields(kind)) from None
    for place in ignored:
        value = _without(value, place)
    return built(kind, value, False)[0], [".".join(map(str, place)) for place in ignored]


def _without(value: Any, place: tuple[int | str, ...]) -> Any:
    first, *rest = place
    if isinstance(value, list):
        return [_without(each, tuple(rest)) if i == first else each for i, each in enumerate(value)]
    if not rest:
        return {name: each for name, each in value.items() if name != first}
    return {name: _without(each, tuple(rest)) if name == first else each for name, each in value.items()}


def known_fields(kind: type[BaseModel], place: str = "") -> dict[str, list[str]]:
    """The names of the fields of a model and of those in it, by their place without numbers of items."""
    found = {place: list(kind.model_fields)}
    for name, field in kind.model_fields.items():
        for inner in _models_in(field.annotation):
            found |= known_fields(inner, f"{place}.{name}".lstrip("."))
    return found


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
