"""What a chat request asks of the form of its answer: JSON, a schema, a pattern, choices, calls of tools."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from afina.models.tokenizer import Tokenizer
from afina.serving import schema
from afina.serving.http.asking import Asked
from afina.serving.http.body import Body
from afina.serving.http.errors import invalid, unsupported
from afina.serving.http.tools import Dialect, call_form, checked

_NAME = r"^[A-Za-z0-9_.-]{1,64}$"


class JsonSchema(Body):
    name: Annotated[str, Field(pattern=_NAME)]
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Function(Body):
    name: Annotated[str, Field(pattern=_NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


@dataclass(frozen=True)
class Calling:
    """What may be called, and whether it has to be. `form` is that of an answer that has to call."""

    tools: list[dict[str, Any]]
    dialect: Dialect
    names: frozenset[str]
    form: schema.Form | None = None


def calling_of(tools: list[Tool] | None, choice: str | dict[str, Any] | None, tokenizer: Tokenizer) -> Calling | None:
    """None where nothing may be called. Raises `HttpError`."""
    if not tools:
        if choice not in (None, "none", "auto"):
            raise invalid("tool_choice asks for a call, and there are no tools", "tool_choice")
        return None
    if choice == "none":
        return None
    given = [tool.model_dump(exclude_none=True) for tool in tools]
    names = [tool["function"]["name"] for tool in given]
    if len(set(names)) < len(names):
        raise invalid("two tools have one name", "tools")
    dialect = checked(tokenizer)
    may = given
    if isinstance(choice, dict):
        named = _named(choice)
        may = [tool for tool in given if tool["function"]["name"] == named]
        if not may:
            raise invalid(f"tool_choice names {named!r}, which is none of the tools", "tool_choice")
    has_to = choice == "required" or isinstance(choice, dict)
    form = None
    if has_to:
        with _refusing("tools"):
            form = call_form(tokenizer, may, dialect)
    return Calling(given, dialect, frozenset(names), form)


def _named(choice: dict[str, Any]) -> str:
    function = choice.get("function")
    if choice.keys() != {"type", "function"} or choice["type"] != "function" or not isinstance(function, dict):
        raise invalid('tool_choice is "none", "auto", "required" or {"type": "function", "function": {"name": …}}',
                      "tool_choice")  # fmt: skip
    return str(function.get("name"))


def form_of(asked: Asked, wanted: ResponseFormat | None, calling: Calling | None) -> schema.Form | None:
    """The form of the whole answer; None: any. Raises `HttpError`."""
    extras = asked.extras
    given = {
        "response_format": wanted is not None and wanted.type != "text",
        "afina.regex": extras.regex is not None,
        "afina.choices": extras.choices is not None,
        "tool_choice": calling is not None and calling.form is not None,
    }
    names = [name for name, is_given in given.items() if is_given]
    if len(names) > 1:
        raise invalid(f"{' and '.join(names)} contradict each other: give one of them", names[1])
    if not names:
        return None
    if asked.ignore_eos or asked.min_tokens:
        name = "ignore_eos" if asked.ignore_eos else "min_tokens"
        raise invalid(f"{name} contradicts {names[0]}, which says where the answer ends", name)
    if calling is not None and calling.form is not None:
        return calling.form
    with _refusing(names[0]):
        return _made(extras.regex, extras.choices, wanted)


def _made(regex: str | None, choices: list[str] | None, wanted: ResponseFormat | None) -> schema.Form:
    if regex is not None:
        return schema.pattern_form(regex)
    if choices is not None:
        return schema.choice_form(choices)
    assert wanted is not None
    if wanted.type == "json_object":
        return schema.any_json()
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        raise invalid("response_format.json_schema.schema is missing", "response_format")
    return schema.json_form(wanted.json_schema.schema_)


async def grammar_of(form: schema.Form | None, tokenizer: Tokenizer, param: str) -> schema.Grammar | None:
    """Made beside the event loop. Raises `HttpError`."""
    if form is None:
        return None
    with _refusing(param):
        return await asyncio.to_thread(schema.Grammar, form, tokenizer)


@contextmanager
def _refusing(param: str) -> Iterator[None]:
    """Raises `HttpError` for a form that cannot be had, which `param` asks for."""
    try:
        yield
    except schema.SchemaError as error:
        raise invalid(error.problems[0], param, "unsupported_schema") from None
    except schema.NoGrammars as error:
        raise unsupported(f"{error.problems[0]}: {error.remedy}", param) from None
