"""From a record to an example: a conversation whose last answer is to be learned, and what it is scored against."""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from afina.core.errors import DataError, SettingsError, near
from afina.data.layouts import Layout, recognise
from afina.data.read import OpenFiles, read
from afina.data.rows import Notes, Record, Rejected, Rejections
from afina.data.settings import DataSettings
from afina.models.tokenizer import Message

ROLES = {"system", "user", "assistant", "tool"}
# ShareGPT's names of the speakers, and others that people write.
_SPEAKERS = {
    "human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant",
    "developer": "system", "function_call": "assistant", "observation": "tool", "function_response": "tool",
    "function": "tool", "ipython": "tool",
}  # fmt: skip
_TEXT = "text"
_SAMPLE = 1000  # rows from whose columns and values the layout is recognised
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}\[\]]+)((?:\[[^\[\]{}]*\])*)\}|[{}]")


@dataclass(frozen=True)
class Example:
    """`messages` up to the question, and the `completion` (None where only references are known).

    `source` is the text that the prompt was made of, without the template's own words: what copying would answer. Plain
    text has no messages: all of its completion is learned, as it stands. `unfinished` text continues in the next
    example."""

    messages: tuple[Message, ...]
    completion: str | None
    references: tuple[str, ...]
    source: str
    location: str
    unfinished: bool = False
    last_only: bool = False  # of the assistant's turns only the last is learned

    @property
    def prompt_key(self) -> str:
        """Equal for examples that ask the same (of plain text: that say the same)."""
        if not self.messages:
            return self.completion or ""
        return json.dumps(self.messages, sort_keys=True, ensure_ascii=False)

    def answered(self) -> "Example":
        """With the first reference as completion where it has none."""
        return self if self.completion is not None else replace(self, completion=self.references[0])


class Unusable(Exception):
    """Why one row cannot become an example."""


def text_of(value: Any) -> str:
    """A column as text: strings as they are, a list of strings joined by spaces, anything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return " ".join(value)
    return json.dumps(value, ensure_ascii=False)


class ColumnTemplate:
    """Text with `{column}`, `{column[0]}`, `{column[key]}` or `{column?}`, which may be empty, in it.

    Raises `DataError` where it is malformed.
    """

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
        filled = "".join(p if isinstance(p, str) else text_of(self._value(p, values)) for p in self.parts)
        return filled.strip() if any(name.endswith("?") for name in self.columns) else filled

    def source(self, values: dict[str, Any]) -> str:
        return " ".join(text_of(self._value(p, values)) for p in self.parts if isinstance(p, tuple))

    def _value(self, part: tuple[str, list[str]], values: dict[str, Any]) -> Any:
        name, keys = part
        if name.endswith("?") and name not in values:
            return "" if values.get(name[:-1]) is None else values[name[:-1]]
        if values.get(name) is None:
            raise Unusable(f"column {name!r} is missing or null")
        value = values[name]
        for key in keys:
            try:
                value = value[int(key)] if isinstance(value, list) else value[key]
            except (LookupError, ValueError, TypeError):
                raise Unusable(f"column {name!r} has no item [{key}]") from None
        return value


def read_examples(
    settings: DataSettings, *, needs_completion: bool, files: OpenFiles | None = None
) -> tuple[list[Example], Rejections, Notes]:
    """Every usable example of the file, every other row with its reason, and what was found out about the file.

    Raises `DataError` where none is usable.
    """
    notes, rejected = Notes(), Rejections()
    examples = list(usable_examples(settings, notes, rejected, needs_completion=needs_completion, files=files))
    check_usable(settings, len(examples), rejected)
    return examples, rejected, notes


def usable_examples(
    settings: DataSettings,
    notes: Notes,
    rejected: Rejections,
    *,
    needs_completion: bool = True,
    files: OpenFiles | None = None,
) -> Iterator[Example]:
    """The examples of the rows that can be used; the others go into `rejected`."""
    for row in map_examples(settings, notes, needs_completion=needs_completion, files=files):
        if isinstance(row, Rejected):
            rejected.add(row)
        else:
            yield row


def check_usable(settings: DataSettings, count: int, rejected: Rejections) -> None:
    """Raises `DataError` where a file's `count` of usable rows is zero."""
    if not count and not rejected:
        raise DataError(f"data {settings.path} is empty: it holds no example", "give a file with at least one")
    if not count:
        raise DataError([f"{settings.path}: no row can be used", *rejected.lines()], "fix the file or the templates")


def map_examples(
    settings: DataSettings, notes: Notes, *, needs_completion: bool, files: OpenFiles | None = None
) -> Iterator[Example | Rejected]:
    """Reads the data: an example of each record that can be used; the other rows with their reasons, in their order.

    With templates: the columns that they name. Without: a layout that is known (layouts.py), which goes into `notes`.
    Columns that no row has, or for which no layout is known, raise `DataError`: then the mapping is wrong, not the row.
    """
    rows = _renamed(read(settings, notes, files), settings)
    start = list(itertools.islice(rows, _SAMPLE))
    records = [row for row in start if isinstance(row, Record)]
    convert = _converter(settings, [record.values for record in records], notes, needs_completion) if records else None
    for row in itertools.chain(start, rows):
        if isinstance(row, Rejected):
            yield row
            continue
        if convert is None:
            convert = _converter(settings, [row.values], notes, needs_completion)
        try:
            yield convert(row)
        except Unusable as reason:
            yield Rejected(row.location, str(reason))


def _renamed(rows: Iterator[Record | Rejected], settings: DataSettings) -> Iterator[Record | Rejected]:
    """The rows with the columns of `settings.map` under the names that layouts know."""
    if settings.map is None:
        return rows
    pairs = [[part.strip() for part in pair.split("=")] for pair in settings.map.split(",")]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise SettingsError(f"--map {settings.map!r} does not name columns", "write name=column,name=column")
    known = {column: name for name, column in pairs}

    def renamed(row: Record | Rejected) -> Record | Rejected:
        if isinstance(row, Rejected):
            return row
        return replace(row, values={known.get(name, name): value for name, value in row.values.items()})

    first = next(rows, None)
    if isinstance(first, Record):
        absent = [column for column in known if column not in first.values]
        if absent:
            raise SettingsError(
                f"--map names {absent[0]!r}, which is not a column of {settings.path}."
                f"{near(absent[0], list(first.values))}",
                f"the columns are {', '.join(map(repr, first.values))}",
            )
    return map(renamed, rows if first is None else itertools.chain([first], rows))


def _converter(
    settings: DataSettings, sample: Sequence[dict[str, Any]], notes: Notes, needs_completion: bool
) -> Callable[[Record], Example]:
    columns = list(dict.fromkeys(name for values in sample for name in values))
    if settings.references:
        _require([settings.references], columns, "--references", settings)
    layout = layout_of(settings, columns, sample, needs_completion)
    notes.layout = layout
    if settings.prompt is None and settings.completion is None:
        notes.say(f"{settings.path}: {layout.words()}")
    if layout.prompt is None and layout.conversation is None:
        if settings.system or settings.references:
            raise DataError(
                f"{settings.path} is plain text, which has no conversation", "leave --system and --references out"
            )
        text = ColumnTemplate(layout.completion or "", "--completion")
        return lambda record: _from_text(record, text)
    convert = _asking(settings, layout, columns, needs_completion)
    text = ColumnTemplate(f"{{{_TEXT}}}", "--completion")
    if _TEXT in ColumnTemplate((layout.prompt or "{messages}") + (layout.completion or ""), "--prompt").columns:
        return convert

    def either(record: Record) -> Example:
        """Rows that hold nothing but a text, among others, as `afina data prepare --replay` writes them, are learned as
        plain text."""
        if isinstance(record.values.get(_TEXT), str) and sum(v is not None for v in record.values.values()) == 1:
            notes.say(f"{settings.path}: rows that hold nothing but {_TEXT!r} are learned as plain text")
            return _from_text(record, text)
        return convert(record)

    return either


def _asking(
    settings: DataSettings, layout: Layout, columns: list[str], needs_completion: bool
) -> Callable[[Record], Example]:
    if layout.conversation is not None:
        column = layout.conversation
        return lambda record: _from_messages(record, column, settings, needs_completion)
    prompt = ColumnTemplate(layout.prompt or "", "--prompt")
    completion = ColumnTemplate(layout.completion or "{completion}", "--completion")
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


def layout_of(
    settings: DataSettings, columns: Sequence[str], sample: Sequence[dict[str, Any]], needs_completion: bool = True
) -> Layout:
    """The mapping by the templates given, and by the layout where they are not. Raises `DataError` where that leaves it
    open."""
    known = recognise(columns, sample)
    if settings.prompt is not None or settings.completion is not None:
        half = known if known and known.prompt is not None else Layout("", "{prompt}", "{completion}")
        same = known if known and settings.completion in (None, known.completion) else None
        return Layout(
            "as given",
            settings.prompt or half.prompt,
            settings.completion or half.completion,
            kind=same.kind if same and same.kind != "text" else None,
        )
    if known is None and not needs_completion and "prompt" in columns:
        known = Layout("prompts", "{prompt}", "{completion}")
    if known is None:
        shown = ", ".join(map(repr, columns))
        example = (
            f"--prompt '{{{columns[0]}}}' --completion '{{{columns[1]}}}'"
            if len(columns) > 1
            else "--prompt '…' --completion '…'"
        )
        raise DataError(
            f"{settings.path}: columns {shown} do not say what is asked and what is answered",
            f"name them with templates, such as {example}",
        )
    return known


def _require(wanted: list[str], columns: list[str], flag: str, settings: DataSettings) -> None:
    absent = [name for name in wanted if name not in columns and not name.endswith("?")]
    if absent:
        raise DataError(
            [f"{settings.path}: no column {name!r}, which {flag} names.{near(name, columns)}" for name in absent],
            f"the columns are {', '.join(map(repr, columns))}",
        )


def _from_text(record: Record, template: ColumnTemplate) -> Example:
    text = template.fill(record.values)
    if not text.strip():
        raise Unusable("the text is empty")
    check_unicode(text)
    return Example((), text, (), text, record.location)


def _from_messages(record: Record, column: str, settings: DataSettings, needs_completion: bool) -> Example:
    turns = record.values.get(column)
    if not isinstance(turns, list) or not turns:
        raise Unusable(f"{column!r} is not a list of messages")
    messages = [_message(turn, number) for number, turn in enumerate(turns, 1)]
    given = [record.values.get("system"), _tools(record.values.get("tools"))]
    system = "\n\n".join(text for text in given if isinstance(text, str) and text.strip())
    if system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    answer = None
    if messages[-1]["role"] == "assistant":
        *messages, last = messages
        answer = last["content"]
    elif needs_completion:
        raise Unusable("the last message is not the assistant's, so there is nothing to learn")
    asked = [m["content"] for m in messages if m["role"] == "user"]
    if not asked:
        raise Unusable("no message of the user comes before the answer")
    return _example(messages, answer, asked[-1], record, settings)


def _message(turn: Any, number: int) -> Message:
    """A turn in OpenAI's form (role, content, tool_calls) or ShareGPT's (from, value), as role and text."""
    if not isinstance(turn, dict):
        raise Unusable(f"message {number} is not an object")
    said = turn.get("role", turn.get("from"))
    role = _SPEAKERS.get(said, said) if isinstance(said, str) else None
    if role not in ROLES:
        raise Unusable(f"message {number} has no role of {', '.join(sorted(ROLES))}")
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        content = "\n".join(part["text"] for part in content)  # OpenAI's parts of a message
    calls = turn.get("tool_calls")
    if calls:  # as text, which every template can write
        content = "\n".join(
            [content or "", *(text_of(call.get("function", call)) for call in calls if isinstance(call, dict))]
        ).strip()
    if not isinstance(content, str):
        raise Unusable(f"message {number} has no text as content")
    return {"role": str(role), "content": content}


def _tools(value: Any) -> str | None:
    if not value or value == "[]":
        return None
    return f"Tools:\n{text_of(value)}"


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
    return Example(tuple(messages), answer, references, source, record.location, last_only=settings.learn == "last")


def check_unicode(text: str) -> None:
    """Raises `Unusable` for half a character (a lone surrogate), which no tokenizer takes and no file holds."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unusable(f"character {error.start + 1} of a text is not valid Unicode") from None
