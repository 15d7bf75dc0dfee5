"""What a client is told when a request fails: OpenAI's shape and its codes (no 422), never a path, never a trace."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.responses import Response

from afina.core.errors import AfinaError, InputError, counted, near
from afina.core.text import json_text
from afina.data.mapping import Unusable
from afina.serving.schema import SchemaError
from afina.serving.service import (
    Conflict,
    NoMemory,
    QueueFull,
    Replaced,
    ServiceFault,
    Stopping,
    TooLong,
    Unanswerable,
    UnknownModel,
)

_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 409: "conflict_error",
    429: "rate_limit_error", 500: "server_error", 503: "unavailable_error",
}  # fmt: skip
_PATH = re.compile(r"(?<![\w/<.])(?:[A-Za-z]:\\|~?/)(?:[^\s'\",;:()<>]+[/\\])*([^\s'\",;:()<>/\\]*)")
_FORBIDDEN = "extra_forbidden"
_IS = {
    "string_type": "text", "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
    "bool_type": "true or false", "list_type": "a list", "dict_type": "an object", "model_type": "an object",
    "none_required": "null", "finite_number": "a finite number", "literal_error": "{expected}",
    "greater_than_equal": "at least {ge:,}", "greater_than": "more than {gt:,}", "less_than_equal": "at most {le:,}",
    "less_than": "less than {lt:,}",
}  # fmt: skip
_LENGTHS = {
    "string_too_short": "character", "string_too_long": "character", "too_short": "item", "too_long": "item",
}  # fmt: skip
_MOST = 5  # problems of one request that are told


class HttpError(Exception):
    """An answer with an error in it. `param` is the field that is wrong; `code` is OpenAI's where it has one."""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, dict(headers or {})

    @property
    def shape(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return JsonResponse(self.shape, self.status, self.headers)


class JsonResponse(Response):
    media_type = "application/json"

    def __init__(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(json_text(content).encode(), status, dict(headers or {}))


def unsupported(message: str, param: str | None = None) -> HttpError:
    return HttpError(400, message, "unsupported_parameter", param)


def invalid(message: str, param: str | None = None, code: str | None = None) -> HttpError:
    return HttpError(400, message, code, param)


def error_of(error: Exception, asked: str | None = None) -> HttpError | None:
    """What the client is told of `error`; None for one that is no fault of a request but a bug. `asked` is the field
    that has the prompt."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, SchemaError):
        return invalid(error.problems[0], None, "unsupported_schema")
    said = without_paths("; ".join(error.problems) if isinstance(error, AfinaError) else str(error))
    match error:
        case UnknownModel():
            return HttpError(404, said, "model_not_found", "model")
        case QueueFull():
            return HttpError(429, said, "queue_full", headers={"Retry-After": str(error.retry_after_s)})
        case TooLong():
            return invalid(said, asked, "context_length_exceeded")
        case NoMemory():
            return invalid(said, None, "insufficient_memory")  # it would fail again: no SDK is to retry it
        case Stopping() | Replaced():
            return HttpError(503, said, headers={"Retry-After": "5"})
        case Conflict():
            return HttpError(409, said, error.code)
        case Unusable() | Unanswerable():
            return invalid(said, asked)
        case InputError():
            return invalid(said)
        case ServiceFault() | AfinaError():
            return HttpError(500, said)
        case _:
            return None


def without_paths(text: str, given: str | None = None) -> str:
    """`text` with the last part alone of whatever looks like a path of the server's; what the client has `given` in
    quotes is not one."""
    parts = text.split(repr(given)) if given is not None else [text]
    return repr(given).join(_PATH.sub(lambda found: found[1] or "…", part) for part in parts)


def unfit(error: ValidationError, value: Any, known: Mapping[str, list[str]]) -> HttpError:
    """What is wrong with the fields of a request, which is `value`. `known` are the names of the fields, by the place
    of their object without numbers of items."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for each in error.errors(include_url=False, include_input=False):
        place = _place(each["loc"], value, known)
        found.setdefault(place, {}).setdefault(_told(each, place, known), each["type"])
    for place, told in [*found.items()]:
        inner = any(other[: len(place)] == place and len(other) > len(place) for other in found)
        near_fits = {text: kind for text, kind in told.items() if not kind.endswith(("_type", "literal_error"))}
        if near_fits:  # of several forms that the value may have, one is what it nearly is
            found[place] = near_fits
        elif inner:
            del found[place]
    problems = [_problem(".".join(place), [*told]) for place, told in [*found.items()][:_MOST]]
    more = len(found) - len(problems)
    kinds = {kind for told in found.values() for kind in told.values()}
    return invalid(
        "; ".join(problems) + (f"; and {more} more" if more > 0 else ""),
        ".".join(next(iter(found))) or None,
        "unsupported_parameter" if kinds == {_FORBIDDEN} else None,
    )


def _place(loc: Sequence[int | str], value: Any, known: Mapping[str, list[str]]) -> tuple[str, ...]:
    """Where pydantic found something, without its own names for the forms that a field may have."""
    place = list[str]()
    for part in loc:
        if isinstance(value, list) and isinstance(part, int):
            value = value[part] if part < len(value) else None
        elif isinstance(value, dict) and (part in value or part in known.get(_object([*place, ""]), ())):
            value = value.get(part)
        else:
            continue
        place.append(str(part))
    return tuple(place)


def _told(each: ErrorDetails, place: Sequence[str], known: Mapping[str, list[str]]) -> str:
    """What is wrong there: a sentence about an unknown field, or what a value has to be."""
    kind, context = each["type"], each.get("ctx", {})
    if kind == _FORBIDDEN:
        return f"there is no field {'.'.join(place)!r}.{near(place[-1], known.get(_object(place), []))}"
    if kind in _IS:
        return f"has to be {_IS[kind].format(**context)}"
    if kind in _LENGTHS:
        bound, words = ("min_length", "at least") if kind.endswith("short") else ("max_length", "up to")
        return f"has {words} {counted(context[bound], _LENGTHS[kind])}"
    if kind == "missing":
        return "is missing"
    return str(context.get("error") or each["msg"])


def _problem(name: str, said: Sequence[str]) -> str:
    """Of several forms that a value may have each is named."""
    start = "has to be "
    first = said[0]
    if first.startswith("there is no field "):
        return first
    forms = [each.removeprefix(start) for each in said if each.startswith(start)]
    told = [each for each in said if not each.startswith(start)]
    told = [*([start + " or ".join(forms)] if forms else []), *told]
    return f"{name or 'the body'} {', and '.join(told)}"


def _object(place: Sequence[str]) -> str:
    """Where the object is that has the field at `place`, without the numbers of items."""
    return ".".join(part for part in place[:-1] if not part.isdigit())


def only_unknown(error: ValidationError) -> list[tuple[int | str, ...]]:
    """The places of unknown fields, where nothing else is wrong with a request."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [each["loc"] for each in found] if all(each["type"] == _FORBIDDEN for each in found) else []
