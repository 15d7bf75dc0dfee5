"""From a record to an example: a conversation whose last answer is to be learned, and what it is scored against."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from afina.base.tokenizer import Message
from afina.core.errors import DataError, near
from afina.data.read import Record, Rejected
from afina.data.settings import DataSettings

ROLES = {"system", "user", "assistant", "tool"}
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}\[\]]+)((?:\[[^\[\]{}]*\])*)\}|[{}]")


@dataclass(frozen=True)
class Example:
    """`messages` up to the question, and the `completion` (None where only references are known).

    `source` is the text that the prompt was made of, without the template's own words: what copying would answer.
    """

    messages: tuple[Message, ...]
    completion: str | None
    references: tuple[str, ...]
    source: str
    where: str

    @property
    def prompt_key(self) -> str:
        """Equal for examples that ask the same."""
        return json.dumps(self.messages, sort_keys=True, ensure_ascii=False)


class Unusable(Exception):
    """Why one row cannot become an example."""


def text_of(value: Any) -> str:
    """A column as text: strings as they are, a list of strings joined by spaces, anything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return " ".join(value)
    return json.dumps(value, ensure_ascii=False)


class Template:
    """Text with `{column}`, `{column[0]}` or `{column[key]}` in it. Raises `DataError` where it is malformed."""

    def __init__(self, text: str, flag: str) -> None:
        self.flag = flag
        self.parts: list[str | tuple[str, list[str]]] = []
        end = 0
        for match in _FIELD.finditer(text):
            self.parts.append(text[end : match.start()])
            end = match.end()
            if match[0] in ("{{", "}}"):
                self.parts.append(match[0][0])
            elif match[1]:
                self.parts.append((match[1].strip(), re.findall(r"\[([^\]]*)\]", match[2] or "")))
            else:
                raise DataError(
                    f"{flag} {text!r}: the brace at position {match.start() + 1} has no partner",
                    "write a column as {name} and a literal brace as {{ or }}",
                )
        self.parts.append(text[end:])
        self.columns = list(dict.fromkeys(part[0] for part in self.parts if isinstance(part, tuple)))
        if not self.columns:
            raise DataError(f"{flag} {text!r} names no column", "write a column's name in braces, such as {text}")

    def fill(self, values: dict[str, Any]) -> str:
        return "".join(p if isinstance(p, str) else text_of(self._value(p, values)) for p in self.parts)

    def source(self, values: dict[str, Any]) -> str:
        return " ".join(text_of(self._value(p, values)) for p in self.parts if isinstance(p, tuple))

    @staticmethod
    def _value(part: tuple[str, list[str]], values: dict[str, Any]) -> Any:
        name, keys = part
        if values.get(name) is None:
            raise Unusable(f"column {name!r} is missing or null")
        value = values[name]
        for key in keys:
            try:
                value = value[int(key)] if isinstance(value, list) else value[key]
            except (LookupError, ValueError, TypeError):
                raise Unusable(f"column {name!r} has no item [{key}]") from None
        return value


def map_records(
    records: list[Record], settings: DataSettings, *, needs_completion: bool
) -> tuple[list[Example], list[Rejected]]:
    """Examples of the records that can be used, and the others with reasons.

    With templates: the columns that they name. Without: columns `messages`, or `prompt` and `completion`. Columns that no
    row has raise `DataError`, since then the template is wrong, not the row.
    """
    columns = list(dict.fromkeys(name for record in records for name in record.values))
    convert = _converter(settings, columns, needs_completion)
    examples, rejected = [], []
    for record in records:
        try:
            examples.append(convert(record))
        except Unusable as reason:
            rejected.append(Rejected(record.where, str(reason)))
    return examples, rejected


def _converter(settings: DataSettings, columns: list[str], needs_completion: bool) -> Callable[[Record], Example]:
    if settings.references:
        _require([settings.references], columns, "--references", settings)
    if settings.prompt is None and settings.completion is None and "messages" in columns:
        return lambda record: _from_messages(record, settings, needs_completion)
    if (settings.prompt is None and "prompt" not in columns) or (
        needs_completion and settings.completion is None and "completion" not in columns
    ):
        raise DataError(
            f"{settings.path}: columns {', '.join(map(repr, columns))} do not say what is asked and what is answered",
            "name them with templates: --prompt '…{column}…' --completion '{column}'",
        )
    prompt = Template(settings.prompt or "{prompt}", "--prompt")
    completion = Template(settings.completion or "{completion}", "--completion")
    _require(prompt.columns, columns, "--prompt", settings)
    if needs_completion or (settings.references is None and set(completion.columns) <= set(columns)):
        _require(completion.columns, columns, "--completion", settings)

    def convert(record: Record) -> Example:
        asked = prompt.fill(record.values)
        if not asked.strip():
            raise Unusable("the prompt is empty")
        has_answer = all(record.values.get(name) is not None for name in completion.columns)
        answer = completion.fill(record.values) if needs_completion or has_answer else None
        if not needs_completion and not (answer or "").strip():
            answer = None  # a question without an answer can still be asked
        messages: list[Message] = [{"role": "user", "content": asked}]
        return _example(messages, answer, prompt.source(record.values), record, settings)

    return convert


def _require(wanted: list[str], columns: list[str], flag: str, settings: DataSettings) -> None:
    absent = [name for name in wanted if name not in columns]
    if absent:
        raise DataError(
            [f"{settings.path}: no column {name!r}, which {flag} names.{near(name, columns)}" for name in absent],
            f"the columns are {', '.join(map(repr, columns))}",
        )


def _from_messages(record: Record, settings: DataSettings, needs_completion: bool) -> Example:
    messages = record.values.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Unusable("'messages' is not a list of messages")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise Unusable(f"message {number} has no role of {', '.join(sorted(ROLES))}")
        if not isinstance(message.get("content"), str):
            raise Unusable(f"message {number} has no text as content")
    answer = None
    if messages[-1]["role"] == "assistant":
        *messages, last = messages
        answer = last["content"]
    elif needs_completion:
        raise Unusable("the last message is not the assistant's, so there is nothing to learn")
    asked = [m["content"] for m in messages if m["role"] == "user"]
    if not asked:
        raise Unusable("no message of the user comes before the answer")
    return _example(list(messages), answer, asked[-1], record, settings)


def _example(
    messages: list[Message], answer: str | None, source: str, record: Record, settings: DataSettings
) -> Example:
    if answer is not None and not answer.strip():
        raise Unusable("the completion is empty")
    if settings.system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": settings.system}, *messages]
    references: tuple[str, ...] = () if answer is None else (answer,)
    if settings.references:
        value = record.values.get(settings.references)
        listed = value if isinstance(value, list) else [value]
        references = tuple(text_of(item) for item in listed if item is not None)
        if not references:
            raise Unusable(f"column {settings.references!r} has no reference")
    for text in (*(message["content"] for message in messages), answer or "", *references):
        check_unicode(text)
    return Example(tuple(messages), answer, references, source, record.where)


def check_unicode(text: str) -> None:
    """Raises `Unusable` for half a character (a lone surrogate), which no tokenizer takes and no file holds."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unusable(f"character {error.start + 1} of a text is not valid Unicode") from None
