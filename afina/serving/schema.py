"""Answers of a given form: JSON, JSON of a schema, a pattern, one of some choices. Kept by llguidance (extra `schema`),
which says of each token whether it may come next; what it does not enforce is refused, never ignored.

V vocabulary.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from afina.core.errors import AfinaError, InputError, near
from afina.core.limits import SCHEMA_BYTES
from afina.models.tokenizer import Tokenizer


class SchemaError(InputError):
    """A form that cannot be enforced."""


class NoGrammars(InputError):
    """llguidance is not installed."""


# Of white space in JSON a blank, or a line break and its indentation, so that an answer cannot be filled with it.
_FORM = {"whitespace_pattern": r" |\n(?: {0,16}|\t{0,8})"}
_SCHEMAS = {"items", "additionalProperties", "additionalItems"}  # keywords that hold a schema
_LISTS = {"anyOf", "oneOf", "allOf", "prefixItems"}
_NAMED = {"properties", "patternProperties", "$defs", "definitions"}
_VALUES = {
    "$ref", "const", "enum", "type", "minItems", "maxItems", "required", "minProperties", "maxProperties", "minLength",
    "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
}  # fmt: skip
_REMARKS = {
    "$schema", "$id", "$anchor", "$comment", "title", "description", "default", "examples", "deprecated", "readOnly",
    "writeOnly",
}  # fmt: skip
_KNOWN = {*_SCHEMAS, *_LISTS, *_NAMED, *_VALUES, *_REMARKS}


@dataclass(frozen=True)
class Form:
    """What llguidance makes a grammar of. `is_json`: an answer of it is JSON."""

    grammar: str
    is_json: bool


def json_form(schema: Any) -> Form:
    """JSON that follows a schema. Raises `SchemaError` for a keyword that is not enforced, `NoGrammars`."""
    check_schema(schema)
    if len(json.dumps(schema)) > SCHEMA_BYTES:
        raise SchemaError(f"the schema has more than {SCHEMA_BYTES >> 10} kB")
    return Form(_library().LLMatcher.grammar_from_json_schema(closed(schema)), True)


def any_json() -> Form:
    """A JSON object, whatever is in it."""
    return json_form({"type": "object"})


def pattern_form(pattern: str) -> Form:
    """All of the answer matches a regular expression (Rust's, without looking around)."""
    return Form(_library().LLMatcher.grammar_from_regex(pattern), False)


def choice_form(choices: Sequence[str]) -> Form:
    texts = " | ".join(json.dumps(each, ensure_ascii=False) for each in choices)
    return lark_form(f"start: {texts}")


def lark_form(grammar: str) -> Form:
    return Form(_library().LLMatcher.grammar_from_lark(grammar), False)


def closed(schema: Any) -> dict[str, Any]:
    """The schema with white space bounded."""
    whole = schema if isinstance(schema, dict) else ({} if schema else {"enum": []})
    return {**whole, "x-guidance": _FORM}


def check_schema(schema: Any, place: str = "") -> None:
    """Raises `SchemaError` for keywords that nobody knows, or that would not be enforced."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise SchemaError(f"{place or 'the schema'} is no schema: an object is expected")
    for keyword, value in schema.items():
        if keyword not in _KNOWN:
            where = f" at {place}" if place else ""
            raise SchemaError(f"the keyword {keyword!r}{where} is not enforced.{near(keyword, sorted(_KNOWN))}")
        for name, inner in _inner(keyword, value):
            check_schema(inner, f"{place}.{name}".lstrip("."))
    if not isinstance(schema.get("$ref", "#"), str) or not str(schema.get("$ref", "#")).startswith("#"):
        raise SchemaError(f"$ref {schema['$ref']!r} leads out of the schema: put what it names into $defs")


def _inner(keyword: str, value: Any) -> Iterator[tuple[str, Any]]:
    if keyword in _SCHEMAS and not isinstance(value, list):
        yield keyword, value
    elif keyword in {*_LISTS, *_SCHEMAS}:
        if not isinstance(value, list):
            raise SchemaError(f"{keyword} has to be a list of schemas")
        yield from ((f"{keyword}.{i}", each) for i, each in enumerate(value))
    elif keyword in _NAMED:
        if not isinstance(value, dict):
            raise SchemaError(f"{keyword} has to be an object of schemas")
        yield from ((f"{keyword}.{name}", each) for name, each in value.items())


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise NoGrammars(
            "answers of a given form need the package llguidance, which the server does not have",
            "pip install 'afina[schema]' where the server runs",
        ) from None
    return llguidance


_TOKENIZERS: "WeakKeyDictionary[Any, Any]" = WeakKeyDictionary()
_LOCK = threading.Lock()


class Grammar:
    """A form, checked, for one tokenizer. Takes up to some 100 ms, and the first of a tokenizer a second: not for the
    thread of an event loop. Raises `SchemaError`."""

    def __init__(self, form: Form, tokenizer: Tokenizer) -> None:
        self.form = form
        with _LOCK:
            if tokenizer.inner not in _TOKENIZERS:
                _TOKENIZERS[tokenizer.inner] = _tokens(tokenizer)
        self._tokens = _TOKENIZERS[tokenizer.inner]
        is_wrong, said = _library().LLMatcher.validate_grammar_with_warnings(form.grammar, self._tokens)
        if is_wrong or said:
            raise SchemaError(" ".join(said[0].split())[:300])

    def start(self) -> "Follower":
        """For one answer."""
        return Follower(_library().LLMatcher(self._tokens, self.form.grammar, log_level=0))


def _tokens(tokenizer: Tokenizer) -> Any:
    text = tokenizer.inner.backend_tokenizer.to_str()
    return _library().LLTokenizer(text, n_vocab=len(tokenizer.inner), eos_token=sorted(tokenizer.stop_ids))


class Follower:
    """A `Constraint`: how far one answer has come in its grammar."""

    def __init__(self, matcher: Any) -> None:
        self._matcher, self._read = matcher, 0

    def allowed(self, token_ids: Sequence[int]) -> Tensor:
        import numpy

        new, self._read = list(token_ids[self._read :]), len(token_ids)
        if new:
            self._matcher.consume_tokens(new)
        bits = numpy.frombuffer(self._matcher.compute_bitmask(), dtype=numpy.uint8)
        if self._matcher.is_error():
            raise AfinaError(f"the answer cannot go on in the form asked for: {self._matcher.get_error()[:200]}")
        return torch.from_numpy(numpy.unpackbits(bits, bitorder="little").astype(bool))
