"""What a client is told when a request fails: OpenAI's shape and its codes (no 422), never a path, never a trace."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from starlette.responses import Response

from afina.core.errors import AfinaError, InputError, near
from afina.core.text import json_text
from afina.data.mapping import Unusable
from afina.serving.schema import SchemaError
from afina.serving.service import Conflict, NoMemory, QueueFull, Replaced, ServiceFault, Stopping, TooLong, UnknownModel

_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 409: "conflict_error",
    429: "rate_limit_error", 500: "server_error", 503: "unavailable_error",
}  # fmt: skip
_PATH = re.compile(r"(?<![\w/<.])(?:[A-Za-z]:\\|~?/)(?:[^\s'\",;:()<>]+[/\\])*([^\s'\",;:()<>/\\]*)")
_FORBIDDEN = "extra_forbidden"
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


def error_of(error: Exception) -> HttpError | None:
    """What the client is told of `error`; None for one that is no fault of a request but a bug."""
    match error:
        case HttpError():
            return error
        case SchemaError():
            return invalid(error.problems[0], None, "unsupported_schema")
        case UnknownModel():
            return HttpError(404, without_paths(str(error)), "model_not_found", "model")
        case QueueFull():
            return HttpError(
                429, without_paths(str(error)), "queue_full", headers={"Retry-After": str(error.retry_after_s)}
            )
        case TooLong():
            return invalid(without_paths(str(error)), "messages", "context_length_exceeded")
        case NoMemory():
            return invalid(
                without_paths(str(error)), None, "insufficient_memory"
            )  # it would fail again: no SDK is to retry it
        case Stopping() | Replaced():
            return HttpError(503, without_paths(str(error)), headers={"Retry-After": "5"})
        case Conflict():
            return HttpError(409, without_paths(str(error)), error.code)
        case ServiceFault():
            return HttpError(500, without_paths(str(error)))
        case Unusable():
            return invalid(without_paths(str(error)), "messages")
        case InputError():
            return invalid(without_paths("; ".join(error.problems)))
        case AfinaError():
            return HttpError(500, without_paths("; ".join(error.problems)))
        case _:
            return None


def without_paths(text: str) -> str:
    """`text` with the last part alone of whatever looks like a path of the server's."""
    return _PATH.sub(lambda found: found[1] or "…", text)


def unfit(error: ValidationError, known: Mapping[str, list[str]]) -> HttpError:
    """What is wrong with the fields of a request. `known` are the names of the fields, by the place of their object."""
    problems, codes = list[str](), set[str | None]()
    first: str | None = None
    for each in error.errors(include_url=False, include_context=False, include_input=False)[:_MOST]:
        place = [str(part) for part in each["loc"]]
        name = ".".join(place)
        first = first if first is not None else name
        if each["type"] == _FORBIDDEN:
            codes.add("unsupported_parameter")
            problems.append(f"there is no field {name!r}.{near(place[-1], known.get('.'.join(place[:-1]), []))}")
        else:
            codes.add(None)
            problems.append(f"{name}: {each['msg']}" if name else str(each["msg"]))
    more = error.error_count() - len(problems)
    text = "; ".join(problems) + (f"; and {more} more" if more > 0 else "")
    return invalid(text, first or None, codes.pop() if len(codes) == 1 else None)


def _object(place: list[str]) -> str:
    """Where the object is that has the field at `place`, without the numbers of items."""
    return ".".join(part for part in place[:-1] if not part.isdigit())


def only_unknown(error: ValidationError) -> list[tuple[int | str, ...]]:
    """The places of unknown fields, where nothing else is wrong with a request."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [each["loc"] for each in found] if all(each["type"] == _FORBIDDEN for each in found) else []
