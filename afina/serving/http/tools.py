"""Calls of tools in an answer: found in its text, in the words in which the model's chat template writes them.

How a family writes calls is not listed here: it is what its template makes of a call, by which it was trained.
"""

import json
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from afina.data.conversation import Conversation
from afina.data.mapping import Turn, Unusable
from afina.models.tokenizer import Tokenizer
from afina.serving import schema
from afina.serving.http.errors import unsupported

_NAME, _KEY = "Xq7call", "Xq7key"
_DECODER = json.JSONDecoder()
_LONGEST_HEAD = 4096  # characters of a call before its arguments
_BLOCK = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)  # a thought before the call, another each time
_NAMED = re.compile(r'"name"\s*:\s*"((?:[^"\\]|\\.)*)"')
_ARGUMENTS = re.compile(r'"(?:arguments|parameters)"\s*:\s*')


@dataclass(frozen=True)
class Dialect:
    """Calls stand between `opening` and `closing`, as they are seen in an answer's text: without control tokens, and
    without white space around. `key` is the one of the arguments in a JSON object that has the name too; where it is
    empty the name stands before the arguments, with `between` after it. `before` and `after` are the same with control
    tokens and white space, as the template writes them."""

    opening: str
    closing: str
    key: str
    between: str
    before: str
    after: str


@lru_cache(16)
def dialect_of(tokenizer: Tokenizer) -> Dialect | None:
    """None where it cannot be seen how the template writes calls."""
    arguments = {_KEY: 1}
    call = {"id": "call00001", "type": "function", "function": {"name": _NAME, "arguments": arguments}}
    schemas = [{"type": "function", "function": {"name": _NAME, "parameters": {"type": "object", "properties": {}}}}]
    turns = [
        Turn({"role": "user", "content": "a"}, False),
        Turn({"role": "assistant", "content": "", "tool_calls": [call]}, True),
    ]
    try:
        conversation = Conversation(tokenizer, turns, schemas, lambda said: None)
        body = conversation.answers()[-1][1].body
    except (Unusable, IndexError):
        return None
    at = body.find(_NAME)
    if at < 0 or _KEY not in body:
        return None
    for start in (i for i in range(at, -1, -1) if body[i] == "{"):
        found = _read(body, start)
        if isinstance(found, dict) and found.get("name") == _NAME:
            key = next((name for name in ("arguments", "parameters") if found.get(name) == arguments), None)
            end = _end(body, start)
            return _dialect(tokenizer, body[:start], body[end:], key, "") if key else None
    begin = body.find("{", at)
    if begin < 0 or _read(body, begin) != arguments:
        return None
    return _dialect(tokenizer, body[:at], body[_end(body, begin) :], "", body[at + len(_NAME) : begin])


def _dialect(tokenizer: Tokenizer, before: str, after: str, key: str, between: str) -> Dialect:
    def seen(text: str) -> str:
        for control in tokenizer.control_texts:
            text = text.replace(control, "")
        return text.strip()

    return Dialect(seen(_BLOCK.sub("", before)), seen(after), key, between, before, after)


def _read(text: str, start: int) -> Any:
    try:
        return _DECODER.raw_decode(text, start)[0]
    except ValueError:
        return None


def _end(text: str, start: int) -> int:
    return int(_DECODER.raw_decode(text, start)[1])


def call_form(tokenizer: Tokenizer, tools: Sequence[dict[str, Any]], dialect: Dialect) -> schema.Form:
    """One call of one of the tools, and nothing else. Raises `SchemaError`, `NoGrammars`."""
    calls, texts = list[str](), list[str]()
    for tool in tools:
        function = tool["function"]
        parameters = function.get("parameters") or {"type": "object"}
        schema.check_schema(parameters)
        texts += schema.literals(parameters)
        if dialect.key:
            whole = {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, dialect.key: _local(parameters)},
                "required": ["name", dialect.key],
                "additionalProperties": False,
                **{name: parameters[name] for name in ("$defs", "definitions") if name in parameters},
            }
            calls.append(f"%json {json.dumps(schema.closed(whole))}")
        else:
            name = json.dumps(function["name"] + dialect.between, ensure_ascii=False)
            calls.append(f"{name} %json {json.dumps(schema.closed(parameters))}")
    rules = "\n".join(f"c{i}: {call}" for i, call in enumerate(calls))
    either = " | ".join(f"c{i}" for i in range(len(calls)))
    before, after = (_literal(tokenizer, text) for text in (dialect.before, dialect.after))
    return schema.lark_form(f"start: {before} call {after}\ncall: {either}\n{rules}", texts)


def _local(parameters: dict[str, Any]) -> dict[str, Any]:
    """Definitions stand where references look for them: at the top. Raises `SchemaError`."""
    if odd := re.search(r'"\$ref": "(#(?!/(?:\$defs|definitions)/)[^"]*)"', json.dumps(parameters)):
        raise schema.SchemaError(
            f"$ref {odd[1]!r} in a tool's parameters is not enforced: put what it names into $defs"
        )
    return {name: value for name, value in parameters.items() if name not in ("$defs", "definitions", "$schema", "$id")}


def _literal(tokenizer: Tokenizer, text: str) -> str:
    """Text in a grammar; control tokens are named by their numbers."""
    controls = sorted(tokenizer.control_texts, key=len, reverse=True)
    parts = re.split("(" + "|".join(map(re.escape, controls)) + ")", text) if controls else [text]
    found = list[str]()
    for part in parts:
        if part in tokenizer.control_texts:
            found.append(f"<[{tokenizer.inner.convert_tokens_to_ids(part)}]>")
        elif part:
            found.append(json.dumps(part, ensure_ascii=False))
    return " ".join(found)


@dataclass
class Delta:
    """What came: words, or a part of a call. The first part of a call has its name."""

    content: str = ""
    index: int = 0
    name: str | None = None
    arguments: str = ""

    @property
    def shape(self) -> dict[str, Any]:
        """As it is streamed."""
        if self.name is not None:
            function = {"name": self.name, "arguments": self.arguments}
            return {
                "index": self.index,
                "id": f"call_{secrets.token_hex(12)}",
                "type": "function",
                "function": function,
            }
        return {"index": self.index, "function": {"arguments": self.arguments}}


@dataclass
class Finder:
    """Finds calls in the text of one answer as it comes. What may be the beginning of a call is held back; what turns
    out to be none is given away as words."""

    dialect: Dialect
    names: frozenset[str]
    calls: int = 0
    _held: str = ""
    _scan: "_Arguments | None" = None
    _words: bool = False  # words were given away, so that a call without an opening cannot come any more
    _tail: str = field(default="", repr=False)

    def add(self, text: str) -> Iterator[Delta]:
        self._held += text
        while True:
            before = len(self._held), self._scan is None
            yield from self._inside() if self._scan is not None else self._outside(False)
            if not self._held or before == (len(self._held), self._scan is None):
                return

    def finish(self) -> Iterator[Delta]:
        """What is still held back."""
        while self._held and self._scan is None:
            before = len(self._held)
            yield from self._outside(True)
            if len(self._held) == before and self._scan is None:
                break
        if self._scan is not None:
            yield from self._inside()

    def _outside(self, is_end: bool) -> Iterator[Delta]:
        shown = self._held.lstrip(" \t\r\n,;") if self.calls else self._held
        if self.calls:  # between two calls nothing is said
            shown = shown.removeprefix(self.dialect.closing).lstrip(" \t\r\n,;") if shown else shown
        opening = self.dialect.opening
        if not opening or (self.calls and shown.startswith("{")):
            yield from self._bare(shown, is_end)
            return
        at = shown.find(opening)
        if at >= 0:
            yield from self._begun(shown[:at], shown[at + len(opening) :], shown[at:], is_end)
            return
        if self.calls and self.dialect.closing.startswith(shown) and not is_end:
            self._held = shown
            return
        keep = 0 if is_end else _held_back(shown, opening)
        yield from self._said(shown[: len(shown) - keep])
        self._held = shown[len(shown) - keep :]

    def _bare(self, shown: str, is_end: bool) -> Iterator[Delta]:
        """A call that begins with its JSON, which only the beginning of an answer does."""
        begun = shown.lstrip()
        may = (self.calls > 0 or not self._words) and (not begun or begun.startswith("{") or bool(not self.dialect.key))
        if may and begun:
            yield from self._begun("", begun, shown, is_end)
        elif may and not is_end:
            self._held = shown
        else:
            yield from self._said(shown)
            self._held = ""

    def _begun(self, words: str, rest: str, raw: str, is_end: bool) -> Iterator[Delta]:
        """After an opening: is there a call of a known tool?"""
        found = self._head(rest.lstrip())
        if found is None and not is_end and len(rest) < _LONGEST_HEAD:
            yield from self._said(words)
            self._held = raw
        elif isinstance(found, tuple):
            yield from self._said(words, strip=True)
            name, self._scan, self._held = found
            yield Delta(index=self.calls, name=name)
            self.calls += 1
        else:
            skip = max(1, len(raw) - len(rest))
            yield from self._said(words + raw[:skip])
            self._held = raw[skip:]

    def _head(self, text: str) -> "tuple[str, _Arguments, str] | bool | None":
        """The name of a call, its arguments' reader, and the text from there; None: more is needed; False: it is no
        call."""
        if not self.dialect.key:
            name, mark, rest = text.partition(self.dialect.between + "{")
            if mark:
                return (name, _Arguments(False), "{" + rest) if name in self.names else False
            return None if any(each.startswith(text[: len(each)]) for each in self.names) else False
        if not text.startswith("{"):
            return False if text else None
        named, arguments = _NAMED.search(text), _ARGUMENTS.search(text)
        if named and named[1] not in self.names:
            return False
        if named and arguments and arguments.end() < len(text):
            first = text[arguments.end()]
            return (named[1], _Arguments(True), text[arguments.end() :]) if first in '{"' else False
        return None

    def _inside(self) -> Iterator[Delta]:
        assert self._scan is not None
        arguments, rest, is_over = self._scan.read(self._held)
        self._held = rest
        if arguments:
            yield Delta(index=self.calls - 1, arguments=arguments)
        if is_over:
            self._scan = None

    def _said(self, text: str, strip: bool = False) -> Iterator[Delta]:
        """Words. White space before a call is the template's, so that it waits for what follows."""
        whole = self._tail + text
        kept = whole.rstrip()
        self._tail = whole[len(kept) :]
        if strip:
            self._tail = ""
        if kept:
            self._words = True
            yield Delta(content=kept)

    def rest(self) -> str:
        """White space at the end of an answer that calls nothing."""
        tail, self._tail = self._tail, ""
        return "" if self.calls else tail


def _held_back(text: str, opening: str) -> int:
    """How many of the last characters may be the beginning of an opening."""
    return next((n for n in range(min(len(opening) - 1, len(text)), 0, -1) if opening.startswith(text[-n:])), 0)


class _Arguments:
    """Reads the JSON of the arguments, and to the end of the object around them where there is one."""

    def __init__(self, is_in_object: bool) -> None:
        self._in_object, self._done = is_in_object, False
        self._depth = 0
        self._quoted = self._escaped = False
        self._text: str | None = None  # of arguments that are a text with JSON in it

    def read(self, text: str) -> tuple[str, str, bool]:
        """What of `text` belongs to the arguments, what comes after, and whether all is read."""
        if not self._done and self._depth == 0 and self._text is None and text[:1] == '"':
            return self._from_text(text)
        taken = list[str]()
        for i, letter in enumerate(text):
            if not self._done:
                taken.append(letter)
            if self._quoted:
                self._quoted = self._escaped or letter != '"'
                self._escaped = letter == "\\" and not self._escaped
            elif letter == '"':
                self._quoted = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._done and self._depth < 0:
                    return "".join(taken), text[i + 1 :], True
                if not self._done and self._depth == 0:
                    self._done = True
                    if not self._in_object:
                        return "".join(taken), text[i + 1 :], True
        return "".join(taken), "", False

    def _from_text(self, text: str) -> tuple[str, str, bool]:
        try:
            value, end = _DECODER.raw_decode(text)
        except ValueError:
            return "", text, False
        self._done = True
        arguments, rest, is_over = str(value), text[end:], False
        _, rest, is_over = self.read(rest)
        return arguments, rest, is_over


def checked(tokenizer: Tokenizer) -> Dialect:
    """Raises `HttpError` where the model's template shows no form of calls."""
    found = dialect_of(tokenizer)
    if found is None:
        raise unsupported("the model's chat template has no form of calls that is known here", "tools")
    return found
