"""What a record becomes: a conversation up to a question, and the answer to learn."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from afina.models.tokenizer import Message

THINK, THOUGHT = "<think>", "</think>"  # around a thought that stands in the text of an answer


class Unusable(Exception):
    """Why one row cannot become an example."""


class Refused(Unusable):
    """The file itself says that the row is not to be learned."""


class Turn(NamedTuple):
    """A message, and whether it is learned."""

    message: Message
    learned: bool


@dataclass(frozen=True)
class Example:
    """`messages` up to the question, and the `completion` (None where only references are known).

    A message has a role and a text (`content`), and some have more: `reasoning_content` (a thought), `tool_calls`,
    `tool_call_id`, `name`. `extra` is what the answer has besides its text. Of the assistant's `messages` those whose
    numbers are in `unlearned` are read, not learned. `tools` are the schemas of what may be called.

    `source` is the text that the prompt was made of, without the template's own words: what copying would answer. Plain
    text has no messages: all of its completion is learned, as it stands. `unfinished` text continues in the next
    example."""

    messages: tuple[Message, ...]
    completion: str | None
    references: tuple[str, ...]
    source: str
    location: str
    unfinished: bool = False
    unlearned: tuple[int, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    extra: Message = field(default_factory=dict)

    @property
    def answer(self) -> Message:
        return {"role": "assistant", "content": self.completion or "", **self.extra}

    @property
    def said(self) -> str:
        """The answer without its thought; what it calls as JSON."""
        return said_of(self.answer)

    @property
    def written(self) -> str:
        """All that is written for the answer: its thought, its text and what it calls."""
        return "\n".join(texts_of(self.answer))

    @property
    def turns(self) -> list[Turn]:
        """The whole conversation."""
        asked = [
            Turn(message, message["role"] == "assistant" and number not in self.unlearned)
            for number, message in enumerate(self.messages)
        ]
        return [*asked, Turn(self.answer, True)]

    @property
    def prompt_key(self) -> str:
        """Equal for examples that ask the same (of plain text: that say the same)."""
        if not self.messages:
            return self.completion or ""
        asked = [self.messages, *([self.tools] if self.tools else [])]
        return "\n".join(json.dumps(each, sort_keys=True, ensure_ascii=False) for each in asked)

    def answered(self) -> "Example":
        """With the first reference as completion where it has none."""
        return self if self.completion is not None else replace(self, completion=self.references[0])


def thought_of(message: Message) -> tuple[str, str]:
    """The thought of an answer (empty where it has none), which is a key of its own or stands in the text between
    <think> and </think> (the first may be missing, where it belongs to the prompt); and the text without it."""
    text: str = message["content"]
    if message.get("reasoning_content"):
        return str(message["reasoning_content"]).strip(), text
    if THOUGHT not in text or (THINK in text and not text.lstrip().startswith(THINK)):
        return "", text
    thought, _, said = text.rpartition(THOUGHT)
    return thought.split(THINK)[-1].strip(), said.lstrip()


def said_of(message: Message) -> str:
    """The text of a message without its thought, and what it calls as JSON, a line each."""
    said = thought_of(message)[1]
    return "\n".join([*([said] if said else []), *called(message)])


def called(message: Message) -> list[str]:
    """What a message calls, each as JSON with its name and arguments."""
    return [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())]


def texts_of(message: Message) -> Iterator[str]:
    """All texts in a message: thought, content and what it calls."""
    yield from (text for text in thought_of(message) if text)
    yield from called(message)


def check_unicode(text: str) -> None:
    """Raises `Unusable` for half a character (a lone surrogate), which no tokenizer takes and no file holds."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unusable(f"character {error.start + 1} of a text is not valid Unicode") from None
