"""Answers of a given form: JSON, JSON of a schema, a pattern, one of some choices. Kept by llguidance (extra `schema`),
which says of each token whether it may come next; what it does not enforce is refused, never ignored. A form is tried
before anything is generated, so that what its limits stop is refused in words.

V vocabulary.
"""

import json
import math
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from afina.core.errors import InputError, near
from afina.core.limits import SCHEMA_BYTES
from afina.models.tokenizer import Tokenizer
from afina.serving.service import ServiceFault


class SchemaError(InputError):
    """A form that cannot be enforced."""


class GivenOut(SchemaError, ServiceFault):
    """A form that could not be followed any longer, in the middle of an answer."""


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
_MOST_REPEATS = 20_000  # of counted repeats in one another; (a{1000}){1000} takes 2 s for a mask
_MOST_OPTIONAL = 400  # properties of one object: llguidance keeps four ways open for each, of _WAYS
_WAYS = 2000
_MOST_MEETING = 8  # patterns that one text may have to match
_STEPS = 100_000  # of its lexer for one token, some 7 ms
_SIZE = 200_000  # symbols of a grammar
_WALKS, _WALK = 4, 16  # answers by chance that are tried, and their tokens
_KNOWN = {*_SCHEMAS, *_LISTS, *_NAMED, *_VALUES, *_REMARKS}


@dataclass(frozen=True)
class Form:
    """What llguidance makes a grammar of. `is_json`: an answer of it is JSON; `texts`: what it says letter by letter,
    where no control token may be."""

    grammar: str
    is_json: bool
    texts: tuple[str, ...] = ()


def json_form(schema: Any) -> Form:
    """JSON that follows a schema. Raises `SchemaError` for a keyword that is not enforced, `NoGrammars`."""
    if len(json.dumps(schema)) > SCHEMA_BYTES:
        raise SchemaError(f"the schema has more than {SCHEMA_BYTES >> 10} kB")
    check_schema(schema)
    try:
        return Form(_library().LLMatcher.grammar_from_json_schema(closed(schema)), True, literals(schema))
    except ValueError:
        raise SchemaError("the schema cannot be read: it holds what JSON cannot") from None


def any_json() -> Form:
    """A JSON object, whatever is in it."""
    return json_form({"type": "object"})


def pattern_form(pattern: str) -> Form:
    """All of the answer matches a regular expression (Rust's, without looking around). Raises `SchemaError`."""
    _check_pattern(pattern)
    return Form(_library().LLMatcher.grammar_from_regex(pattern), False, (_said(pattern),))


def choice_form(choices: Sequence[str]) -> Form:
    texts = " | ".join(json.dumps(each, ensure_ascii=False) for each in choices)
    return lark_form(f"start: {texts}", choices)


def lark_form(grammar: str, texts: Sequence[str] = ()) -> Form:
    return Form(_library().LLMatcher.grammar_from_lark(grammar), False, tuple(texts))


def literals(schema: Any) -> tuple[str, ...]:
    """The texts that a schema has answers say letter by letter: values, names, and what patterns spell."""
    found = list[str]()
    if isinstance(schema, dict):
        for keyword, value in schema.items():
            if keyword in ("const", "enum"):
                found += _strings(value)
            elif keyword == "pattern":
                found.append(_said(str(value)))
            elif keyword in ("properties", "patternProperties"):
                found += [name if keyword == "properties" else _said(name) for name in value]
            for _, inner in _inner(keyword, value):
                found += literals(inner)
    return tuple(found)


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for each in pair for text in _strings(each)]
    return [text for each in value for text in _strings(each)] if isinstance(value, list) else []


def _said(pattern: str) -> str:
    """What a pattern spells: escaped signs as themselves, signs with a meaning as NUL."""
    return re.sub(r"\\([^\w\s])|[|.*+?(){}^$\[\]]", lambda found: found[1] or "\0", pattern)


def _check_pattern(pattern: str) -> None:
    """Raises `SchemaError` where counted repeats stand in one another too often: a mask of them takes seconds."""
    starts, last, size = list[int](), 1, 1  # of what is repeated: how many places it has
    for found in re.finditer(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(\d*)(,?)(\d*)\}|.", pattern, re.DOTALL):
        sign = found[0]
        if sign == "(":
            starts.append(size)
            size = last = 1
        elif sign == ")" and starts:
            last, size = size, max(size, starts.pop())
        elif found[1] or found[3]:
            last *= max(int(number[:9]) for number in (found[1] or "1", found[3] or "1"))
            size = max(size, last)
        elif sign not in "*+?":
            last = 1
        if size > _MOST_REPEATS:
            raise SchemaError(f"the repeats of the pattern come to {size:,}: {_MOST_REPEATS:,} is the limit")


def closed(schema: Any) -> dict[str, Any]:
    """The schema with white space bounded."""
    whole = schema if isinstance(schema, dict) else ({} if schema else {"enum": []})
    return {**whole, "x-guidance": _FORM}


def check_schema(schema: Any, place: str = "") -> None:
    """Raises `SchemaError` for keywords that nobody knows, that would not be enforced, or that would take too long."""
    if not place:
        _check_meeting(schema)
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise SchemaError(f"{place or 'the schema'} is no schema: an object is expected")
    where = f" at {place}" if place else ""
    for keyword, value in schema.items():
        if keyword not in _KNOWN:
            raise SchemaError(f"the keyword {keyword!r}{where} is not enforced.{near(keyword, sorted(_KNOWN))}")
        if keyword in _VALUES:
            _check_value(keyword, value, where)
        for name, inner in _inner(keyword, value):
            check_schema(inner, f"{place}.{name}".lstrip("."))
    _check_optional(schema, where)
    if not isinstance(schema.get("$ref", "#"), str) or not str(schema.get("$ref", "#")).startswith("#"):
        raise SchemaError(f"$ref {schema['$ref']!r} leads out of the schema: put what it names into $defs")


def _check_meeting(schema: Any) -> None:
    """Raises `SchemaError` where a text may have to match many patterns at once: llguidance takes 0.2 s for
    fifteen, more than 13 s for twenty, and has no limit for it."""
    patterns, meet, left = 0, False, [schema]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            patterns += len(each.keys() & {"pattern", "format"}) + _count(each, "patternProperties")
            joins = each.keys() & {"allOf", "anyOf", "oneOf", "$ref"}
            meet |= len(joins) > 1 or bool(joins and each.keys() - joins - _REMARKS - {"type", "$defs", "definitions"})
            meet |= "patternProperties" in each or _count(each, "allOf") > 1
            left += [inner for keyword, value in each.items() for _, inner in _inner(keyword, value)]
    if meet and patterns > _MOST_MEETING:
        raise SchemaError(
            f"{patterns} patterns and formats in a schema with allOf, patternProperties or keywords beside $ref or "
            f"anyOf may have to match at once: {_MOST_MEETING} is the limit"
        )


def _count(schema: dict[str, Any], keyword: str) -> int:
    value = schema.get(keyword)
    return len(value) if isinstance(value, list | dict) else 0


def _check_optional(schema: dict[str, Any], where: str) -> None:
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(each, str) for each in required):
        raise SchemaError(f"required{where} has to be a list of names")
    count = len(schema.get("properties", {}).keys() - set(required))
    if count > _MOST_OPTIONAL:
        raise SchemaError(f"{count:,} properties{where} may be left out: {_MOST_OPTIONAL:,} is the limit")


def _check_value(keyword: str, value: Any, where: str) -> None:
    if isinstance(value, list | dict):
        for each in value if isinstance(value, list) else value.values():
            _check_value(keyword, each, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise SchemaError(f"{keyword}{where} is no finite number")
    elif isinstance(value, int) and abs(value) >= 1 << 63:
        raise SchemaError(f"{keyword}{where} is a number of {len(str(abs(value)))} digits: below 2^63 is the limit")
    elif keyword == "pattern" and isinstance(value, str):
        _check_pattern(value)


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
        if keyword == "patternProperties":
            for name in value:
                _check_pattern(name)
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
    """A form for one tokenizer, checked and tried: some tokens by chance are followed, so that what cannot be kept up
    is mostly known before an answer begins. Takes up to some 100 ms, and the first of a tokenizer a second: not for the
    thread of an event loop. Raises `SchemaError`."""

    def __init__(self, form: Form, tokenizer: Tokenizer) -> None:
        self.form = form
        for text in tokenizer.control_texts:
            if any(text in each for each in form.texts):
                raise SchemaError(f"{text!r} is a control token of this model, which no answer can say: leave it out")
        with _LOCK:
            if tokenizer.inner not in _TOKENIZERS:
                _TOKENIZERS[tokenizer.inner] = _tokens(tokenizer)
        library = _library()
        limits = library.LLParserLimits(
            max_items_in_row=_WAYS, step_lexer_fuel=_STEPS, max_grammar_size=_SIZE, verbose_errors=False
        )
        self._matcher = library.LLMatcher(_TOKENIZERS[tokenizer.inner], form.grammar, log_level=0, limits=limits)
        _check(self._matcher)
        if said := self._matcher.get_grammar_warnings():
            raise SchemaError(" ".join(str(said[0]).split())[:300])
        self._matcher.compute_bitmask()
        _check(self._matcher)
        for seed in range(_WALKS):
            _walk(self._matcher.deep_copy(), tokenizer.stop_ids, seed)

    def start(self) -> "Follower":
        """For one answer."""
        return Follower(self._matcher.deep_copy())


def _walk(matcher: Any, stop_ids: frozenset[int], seed: int) -> None:
    """Follows tokens by chance. Raises `SchemaError` where they cannot be followed."""
    import numpy

    chance = numpy.random.default_rng(seed)
    for _ in range(_WALK):
        may = _bits(matcher)
        _check(matcher)
        may[[i for i in stop_ids if i < len(may)]] = False
        ids = numpy.flatnonzero(may)
        if matcher.is_stopped() or not len(ids):
            return
        matcher.consume_token(int(chance.choice(ids)))
        _check(matcher)


def _bits(matcher: Any) -> Any:
    import numpy

    packed = numpy.frombuffer(matcher.compute_bitmask(), dtype=numpy.uint8)
    return numpy.unpackbits(packed, bitorder="little").astype(bool)


_LIMITS = [
    (r"NoExtension", "no answer can have this form: it names itself without end, or contradicts itself"),
    (r"regex is empty", "its patterns meet, and whether any text matches all of them cannot be told: use fewer"),
    (r"row has|ParserTooComplex|items", f"it leaves more than {_WAYS:,} ways open at one place, which is the limit"),
    (r"(?i)grammar.*(size|big|large)|max_grammar_size", f"it has more than {_SIZE:,} symbols, which is the limit"),
    (r"(?i)lexer|fuel|expressions|states|doesn't satisfy",
     f"its patterns take more than {_STEPS:,} steps for one token, which is the limit: repeat less"),
]  # fmt: skip


def _check(matcher: Any, kind: type[SchemaError] = SchemaError) -> None:
    """Raises `kind` where the matcher gave up, in words without its state."""
    if matcher.is_error():
        said = f"{matcher.get_error()}".partition("\n<")[0]
        wrong = re.search(r"(?m)^\s*error: (.+)$", said)  # in a regular expression
        if wrong:
            raise kind(f"a pattern or a length cannot be read: {wrong[1][:200]}")
        words = next((words for sign, words in _LIMITS if re.search(sign, said)), None)
        raise kind(f"the form cannot be followed: {words or ' '.join(said.split())[:300]}")


def _tokens(tokenizer: Tokenizer) -> Any:
    text = tokenizer.inner.backend_tokenizer.to_str()
    return _library().LLTokenizer(text, n_vocab=len(tokenizer.inner), eos_token=sorted(tokenizer.stop_ids))


class Follower:
    """A `Constraint`: how far one answer has come in its grammar."""

    def __init__(self, matcher: Any) -> None:
        self._matcher, self._read = matcher, 0

    def allowed(self, token_ids: Sequence[int]) -> Tensor:
        """(V,) bool. Raises `GivenOut` where the form cannot be followed any longer."""
        new, self._read = list(token_ids[self._read :]), len(token_ids)
        if new:
            self._matcher.consume_tokens(new)
        bits = _bits(self._matcher)
        _check(self._matcher, GivenOut)
        return torch.from_numpy(bits)
