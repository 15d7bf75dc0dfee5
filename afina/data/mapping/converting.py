"""One record to one example, by the columns of its file or by the conversation in it."""

import itertools
from collections.abc import Sequence
from typing import Any

from afina.core.errors import DataError, enumerated
from afina.data.layouts import HISTORIES, MEDIA, SYSTEMS, TOOLS, Layout, example_of, first, parsed, recognise
from afina.data.mapping.columns import ColumnTemplate, require, text_of
from afina.data.mapping.example import Example, Turn, Unusable, check_unicode, said_of, texts_of
from afina.data.mapping.messages import NO_TEXT, Say, system_text, tools_of, turns_of
from afina.data.mapping.verdicts import Verdicts
from afina.data.rows import Notes, Record, Told
from afina.data.settings import DataSettings
from afina.models.tokenizer import Message

_TEXT = "text"
_PLACES = ("<image>", "<audio>", "<video>")  # where a file of another column is meant
_NAMED = 12  # unused columns that are named; of the others their number is


class Converter:
    """Makes examples of the records of a file whose first records have the values `sample`.

    Raises `DataError` where the columns that the settings name are not there, or do not say what is asked and what is
    answered: then the mapping is wrong, not a row.
    """

    def __init__(
        self, settings: DataSettings, sample: Sequence[dict[str, Any]], notes: Notes, needs_completion: bool
    ) -> None:
        self.settings, self.notes, self.needs_completion = settings, notes, needs_completion
        columns = list(dict.fromkeys(name for values in sample for name in values))
        self.references = _named(settings.references, columns)
        require(self.references, columns, "--references", settings)
        self.layout = layout = layout_of(settings, columns, sample, needs_completion)
        notes.layout = layout
        self.given = settings.prompt is not None or settings.completion is not None
        if not self.given:
            notes.say(f"{settings.path}: {layout.words()}")
        self.plain = ColumnTemplate(f"{{{_TEXT}}}", "--completion")  # of a row that holds nothing but a text
        self.asking: tuple[ColumnTemplate, ColumnTemplate] | None = None  # the question's template, the answer's
        self.system: str | None = None
        self.tools: str | None = None
        self.history: str | None = None
        self.media = [name for name in columns if name.lower() in MEDIA]
        if layout.prompt is not None:
            prompt = ColumnTemplate(layout.prompt, "--prompt")
            completion = ColumnTemplate(layout.completion or "{completion}", "--completion")
            prompt.require(columns, settings)
            if needs_completion or (settings.references is None and set(completion.columns) <= set(columns)):
                completion.require(columns, settings)
            self.asking = prompt, completion
        elif not layout.conversation:
            if settings.system or settings.references:
                raise DataError(
                    f"{settings.path} is plain text, which has no conversation", "leave --system and --references out"
                )
            self.plain = ColumnTemplate(layout.completion or "", "--completion")
        if layout.prompt is not None or layout.conversation:
            self._beside(columns, sample)
        self._known: set[str] = set()
        self._name_unused(columns, any(map(_only_text, sample)))
        unread = [name for name in columns if name not in self.references and not self._reads(name)]
        self.verdicts = Verdicts(settings.path, columns, unread, sample)

    def __call__(self, record: Record) -> Example:
        """Raises `Unusable`."""
        values, said = record.values, list[str]()
        if not values.keys() <= self._known:
            self._name_unused([name for name in values if name not in self._known], _only_text(values))
        if self.asking is None and not self.layout.conversation:
            return _from_text(record, self.plain)
        if not self._reads(_TEXT) and _only_text(values):
            # As `afina data prepare --replay` writes them.
            self.notes.say(f"{self.settings.path}: rows that hold nothing but {_TEXT!r} are learned as plain text")
            return _from_text(record, self.plain)
        self.verdicts.look(record, self.notes)
        turns, tools = self._told(self._turns(values, said.append), values, said.append), self._tools(values)
        if isinstance(tools, str):
            turns, tools = with_system(turns, tools), ()
        example = self._example(turns, tools, record, said.append)
        self.notes.count(said)
        self._note_holes(record, example)
        return example

    def _beside(self, columns: Sequence[str], sample: Sequence[dict[str, Any]]) -> None:
        """Finds the columns that are read beside every layout, unless it or a template takes them in."""
        named = {name.strip().lower(): name for name in columns if not self._reads(name)}
        self.system, history, tools = (first(names, named) for names in (SYSTEMS, HISTORIES, TOOLS))
        if history and _is_history(example_of(history, sample)):
            self.history = history
        if tools and (self.layout.conversation or tools_of(example_of(tools, sample))):
            self.tools = tools
        what = {"the system message": self.system, "earlier turns": self.history, "descriptions of tools": self.tools}
        if found := [column for column in what.values() if column]:
            words, column = [f"{column!r} ({words})" for words, column in what.items() if column], found[0]
            self.notes.say(f"{self.settings.path}: also read: {', '.join(words)} (--map unused={column} leaves it out)")

    def _reads(self, column: str) -> bool:
        if self.layout.conversation:
            return column in self.layout.conversation
        return any(template.names(column) for template in self.asking or (self.plain,))

    def _name_unused(self, columns: Sequence[str], text_rows: bool) -> None:
        """Names the columns that are not read, once each."""
        self._known.update(columns)
        used = {*self.references, self.system, self.tools, self.history, _TEXT if text_rows else None}
        unused = [name for name in columns if name not in used and not self._reads(name)]
        media = [name for name in unused if name in self.media]
        others = [name for name in unused if name not in self.media]
        remedy = "" if self.layout.conversation else " (name one in --prompt or --completion to use it)"
        if others:
            named = enumerated([repr(name) for name in others], _NAMED)
            line, facts = f"{self.settings.path}: not used: {named}{remedy}", {"columns": others}
            self.notes.tell(Told("unused", line, facts) if remedy else Told("unused beside", line, facts))
        if media:
            line = f"{self.settings.path}: not used: {', '.join(map(repr, media))}, for only text can be read"
            self.notes.tell(Told("unread", line, {"columns": media}))

    def _note_holes(self, record: Record, example: Example) -> None:
        """Warns of cells that hold nothing where a template takes them in."""
        prompt, completion = self.asking or (None, None)
        several = completion if completion and example.completion and len(completion.columns) > 1 else None
        for template, where in ((prompt, "what is asked"), (several, "the answer")):
            for name, found in template.holes(record.values) if template else ():
                remedy = f"fill it in, or write {{{name}?}} where it may be empty"
                if found:
                    remedy = "empty it, or delete the row, where it means that nothing is known"
                what = f"is {found!r}" if found else "is empty, as merged cells are once they are exported,"
                text = f"{name!r} {what} in {where}: {remedy}"
                self.notes.warn("holes", text, record.location)

    def _turns(self, values: dict[str, Any], say: Say) -> list[Turn]:
        """The conversation of a row."""
        if self.layout.conversation:
            turns = self._conversation(values, say)
            if any(values.get(name) for name in self.media) and any(
                place in turn.message["content"] for turn in turns for place in _PLACES
            ):
                raise Unusable(f"its messages speak of what is in {self.media[0]!r}, which {NO_TEXT}")
            return turns
        assert self.asking is not None
        prompt, completion = self.asking
        asked_text = prompt.fill(values)
        if not asked_text.strip():
            raise Unusable("the prompt is empty")
        earlier = values.get(self.history) if self.history else None
        turns = turns_of(earlier, str(self.history), say) if parsed(earlier) else []
        turns.append(Turn({"role": "user", "content": asked_text}, False))
        has_answer = all(values.get(name) is not None for name in completion.columns)
        answer = completion.fill(values) if self.needs_completion or has_answer else ""
        if self.needs_completion or answer.strip():  # a question without an answer can still be asked
            turns.append(Turn({"role": "assistant", "content": answer}, True))
            self._note_lists(completion, values, say)
        return turns

    def _note_lists(self, completion: ColumnTemplate, values: dict[str, Any], say: Say) -> None:
        """Says what a layout makes of an answer that is a list of several."""
        (name, keys), *others = [part for part in completion.parts if isinstance(part, tuple)]
        if self.given or others or not keys:
            return
        value = values.get(name)
        for key in keys[:-1]:
            value = value[key] if isinstance(value, dict) else value
        if isinstance(value, list) and len(value) > 1:
            path = name + "".join(f"[{key}]" for key in keys[:-1])
            done, way = ("the first is learned", "[, ]") if keys[-1] == "0" else ("all are learned, joined", "[0]")
            other = "learns all" if keys[-1] == "0" else "learns the first alone"
            say(f"{name!r} is a list: {done}; --completion '{{{path}{way}}}' {other}")

    def _conversation(self, values: dict[str, Any], say: Say) -> list[Turn]:
        if len(self.layout.conversation) == 1:
            (column,) = self.layout.conversation
            turns = turns_of(values.get(column), column, say)
            if not self.layout.last_only:
                return turns
            last = max((i for i, turn in enumerate(turns) if turn.learned), default=None)
            return [Turn(turn.message, i == last) for i, turn in enumerate(turns)]
        asked, answered = self.layout.conversation
        before = _spoken(values.get(asked), "user", asked, say)
        after = values.get(answered)
        if parsed(after) in (None, "", []) and not self.needs_completion:
            return before
        return [*(Turn(turn.message, False) for turn in before), *_spoken(after, "assistant", answered, say)]

    def _told(self, turns: list[Turn], values: dict[str, Any], say: Say) -> list[Turn]:
        """The turns after their system message: their own, that of the row, or that of the settings."""
        text = values.get(self.system) if self.system else None
        own = system_text(text) if text is not None else ""
        if turns[0].message["role"] == "system":
            if own.strip() and own.strip() != turns[0].message["content"].strip():
                say(f"conversations have a system message of their own, so that of {self.system!r} is not used")
            return turns
        told = own if own.strip() else self.settings.system
        return [Turn({"role": "system", "content": told}, False), *turns] if told else turns

    def _tools(self, values: dict[str, Any]) -> tuple[dict[str, Any], ...] | str:
        """The schemas of the tools; a text where they are described in another way."""
        value = values.get(self.tools) if self.tools else None
        if parsed(value) in (None, "", [], {}):
            return ()
        schemas = tools_of(value)
        return tools_text(text_of(value)) if schemas is None else schemas

    def _example(self, turns: list[Turn], tools: tuple[dict[str, Any], ...], record: Record, say: Say) -> Example:
        turns, answer = self._divided(_learnable(turns, say), say)
        references: tuple[str, ...] = () if answer is None else (said_of(answer),)
        if self.references:
            values = [record.values.get(column) for column in self.references]
            listed = itertools.chain.from_iterable(each if isinstance(each, list) else [each] for each in values)
            references = tuple(text_of(item) for item in listed if item not in (None, ""))
            if not references:
                raise Unusable(f"column {self.settings.references!r} has no reference")
        messages = tuple(turn.message for turn in turns)
        for text in (*itertools.chain(*map(texts_of, (*messages, answer or {"content": ""}))), *references):
            check_unicode(text)
        last_only = self.settings.learn == "last"
        return Example(
            messages,
            None if answer is None else answer["content"],
            references,
            self.asking[0].source(record.values) if self.asking else _asked(messages),
            record.location,
            unlearned=tuple(
                i for i, t in enumerate(turns) if t.message["role"] == "assistant" and (last_only or not t.learned)
            ),
            tools=tools,
            extra={name: value for name, value in (answer or {}).items() if name not in ("role", "content")},
        )

    def _divided(self, turns: list[Turn], say: Say) -> tuple[list[Turn], Message | None]:
        """What comes before the answer, and the answer: the last that is learned; None for a question alone."""
        last = max((i for i, turn in enumerate(turns) if turn.learned), default=None)
        asked = max((i for i, turn in enumerate(turns) if turn.message["role"] != "assistant"), default=None)
        if asked is None:
            raise Unusable("nothing comes before the answer")
        if not self.needs_completion and (last is None or asked > last):
            return turns[: asked + 1], None
        if last is None:
            answers = [turn.message for turn in turns if turn.message["role"] == "assistant"]
            if not answers:
                raise Unusable("no message is the assistant's, so there is nothing to learn")
            if not any(map(_says, answers)):
                raise Unusable("the completion is empty")
            raise Unusable("none of the assistant's messages is to be learned, by what they say or where they stand")
        if asked > last:
            say("conversations go on after the last answer that is learned: what follows it is left out")
        return turns[:last], turns[last].message


def _named(references: str | None, columns: Sequence[str]) -> list[str]:
    """The columns that --references names: one, which may have commas in its name, or several."""
    if references is None or references in columns:
        return [references] if references else []
    return [name.strip() for name in references.split(",")]


def _learnable(turns: list[Turn], say: Say) -> list[Turn]:
    """With the marks only on what can be learned: an answer must say something, and something must come before it."""
    found: list[Turn] = []
    for turn in turns:
        learned = turn.learned
        if learned and not any(before.message["role"] != "assistant" for before in found):
            say("conversations begin with the assistant: what it says before anyone else is read but not learned")
            learned = False
        elif learned and not _says(turn.message):
            say("messages of the assistant say nothing: they are read but not learned")
            learned = False
        found.append(Turn(turn.message, learned))
    return found


def _says(message: Message) -> bool:
    return bool(said_of(message).strip())


def _asked(messages: Sequence[Message]) -> str:
    """What is asked: the last text of the user, or else all that is told."""
    asked = [message["content"] for message in messages if message["role"] == "user"]
    return asked[-1] if asked else "\n".join(message["content"] for message in messages)


def _is_history(value: Any) -> bool:
    first_turn = value[0] if isinstance(value, list) and value else None
    return isinstance(first_turn, dict | list)


def _spoken(value: Any, role: str, column: str, say: Say) -> list[Turn]:
    """The turns in a column of messages, or the text in it as a turn of `role`."""
    if isinstance(value, str) and not isinstance(parsed(value), list):
        return [Turn({"role": role, "content": value}, role == "assistant")]
    return turns_of(value, column, say)


def tools_text(described: str) -> str:
    """How tools are described to a base whose chat template knows none."""
    return f"Tools:\n{described}"


def with_system(turns: list[Turn], text: str) -> list[Turn]:
    """The turns with a text at the end of their system message, which is put before them where there is none."""
    has_system = bool(turns) and turns[0].message["role"] == "system"
    told = f"{turns[0].message['content']}\n\n{text}" if has_system else text
    return [Turn({"role": "system", "content": told}, False), *turns[has_system:]]


def _only_text(values: dict[str, Any]) -> bool:
    return isinstance(values.get(_TEXT), str) and sum(value is not None for value in values.values()) == 1


def _from_text(record: Record, template: ColumnTemplate) -> Example:
    text = template.fill(record.values)
    if not text.strip():
        raise Unusable("the text is empty")
    check_unicode(text)
    return Example((), text, (), text, record.location)


def layout_of(
    settings: DataSettings, columns: Sequence[str], sample: Sequence[dict[str, Any]], needs_completion: bool = True
) -> Layout:
    """The mapping by the templates given, and by the layout where they are not. Raises `DataError` where that leaves it
    open."""
    known = recognise(columns, sample)
    if settings.prompt is not None or settings.completion is not None:
        half = known if known and known.prompt is not None else Layout("", "{prompt}", "{completion}")
        if half is not known:
            _check_both(settings, columns, known, needs_completion)
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
        from afina.data.roles import unmapped  # late: it reads values, which most files need not

        raise unmapped(settings.path, sample)
    return known


def _check_both(settings: DataSettings, columns: Sequence[str], known: Layout | None, needs_completion: bool) -> None:
    """Raises `DataError` where one template is given, and nothing says what the other is."""
    templates = {"prompt": settings.prompt, "completion": settings.completion}
    lacking = next((name for name, template in templates.items() if template is None and name not in columns), None)
    if lacking is None or (lacking == "completion" and not needs_completion):
        return
    given = next(name for name in templates if name != lacking)
    remedy = f"give --{lacking} too; the columns are {', '.join(map(repr, columns))}"
    if known is not None and known.conversation:
        held = " and ".join(map(repr, known.conversation))
        remedy = f"leave --{given} out: the conversation in {held} is read as it is; or give --{lacking} too"
    raise DataError(f"{settings.path}: --{given} is given without --{lacking}, which no column is called", remedy)
