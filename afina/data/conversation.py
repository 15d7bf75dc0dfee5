"""A conversation as a chat template takes it, and what the model writes in it.

Templates differ in what they have a place for. What one has no place for is told in another way or left out, and said;
what it writes for an answer is found by comparing what it makes of the conversation before the answer, as generation
would begin, with what it makes of the conversation with it.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError

from afina.core.errors import counted
from afina.core.limits import MESSAGES, RENDERED_CHARACTERS
from afina.data.mapping import Turn, Unusable, check_unicode, texts_of, thought_of
from afina.data.mapping.converting import tools_text, with_system
from afina.data.mapping.example import THINK, THOUGHT, called
from afina.data.mapping.messages import Say
from afina.models.templates import THOUGHT_KEYS
from afina.models.tokenizer import Message, Tokenizer

Tools = Sequence[dict[str, Any]]

_OPENED = re.compile(rf"{THINK}\s*({THOUGHT}\s*)?$")  # at the end of a prompt: the answer begins within or after it
_BLOCK = re.compile(rf"\s*{THINK}.*?{THOUGHT}\s*", re.DOTALL)  # a thought before an answer
_ANSWER = "Answer."
_EMPTY = re.compile(rf"\s*({THINK}\s*)?{THOUGHT}\s*")


class Remarks:
    """What was done to conversations so that the base's chat template takes them, to be said once."""

    def __init__(self) -> None:
        self._rows: Counter[str] = Counter()
        self._divided = self._turns = 0

    def add(self, said: Iterable[str], rows: int = 1) -> None:
        """What was said of a conversation, which became so many rows."""
        self._rows.update(dict.fromkeys(said, 1))
        if rows > 1:
            self._divided, self._turns = self._divided + 1, self._turns + rows

    def lines(self) -> list[str]:
        lines = [f"{text} ({counted(n, 'row')})" for text, n in self._rows.items()]
        if self._divided:
            lines.append(
                "the base's chat template changes what was said before, so "
                f"{counted(self._divided, 'conversation is')} learned turn by turn, each as it is at inference: "
                f"{counted(self._turns, 'row')} (--data.learn last takes the last of each alone)"
            )
        return lines


@dataclass(frozen=True)
class Written:
    """One answer in its place: what the model is given, what it writes, and what ends that."""

    before: str
    body: str
    end: str


@dataclass
class Conversation:
    """Turns and tools in a form that the template of `tokenizer` takes. `say` hears of what had to be done for that.

    Raises `Unusable` for texts that spell a control token, and for a conversation that is too long to be rendered once
    an answer."""

    tokenizer: Tokenizer
    turns: Sequence[Turn]
    tools: Tools
    say: Say
    changed: bool = False  # because the template refused it

    def __post_init__(self) -> None:
        self._check_length()
        check_texts(self.tokenizer, [turn.message for turn in self.turns], self.tools)
        self._tell()

    def _check_length(self) -> None:
        remedy = "divide it into several rows"
        if len(self.turns) > MESSAGES:
            raise Unusable(f"it has {len(self.turns):,} messages, {MESSAGES:,} are the most of a row: {remedy}")
        answers = sum(turn.learned for turn in self.turns)
        if answers < 2:
            return
        described = [json.dumps(self.tools, ensure_ascii=False)] if self.tools else []
        told = (text for turn in self.turns for text in texts_of(turn.message))
        characters = sum(map(len, (*described, *told)))
        if answers * characters > RENDERED_CHARACTERS:
            raise Unusable(
                f"it has {answers:,} answers in {characters:,} characters, {RENDERED_CHARACTERS // answers:,} are the "
                f"most for so many: {remedy}"
            )

    @property
    def messages(self) -> list[Message]:
        return [turn.message for turn in self.turns]

    def prompt(self) -> str:
        """All of it, up to where the assistant begins to answer. Raises `Unusable` where the template refuses it."""
        try:
            return self._chat(self.messages, answer=True)
        except TemplateError as error:
            self._change(error)
            return self.prompt()

    def answers(self) -> list[tuple[int, Written]]:
        """Each turn that is learned, by its number, as the model would write it. Raises `Unusable` where the template
        refuses them."""
        found = []
        try:
            for number, turn in enumerate(self.turns):
                if turn.learned:
                    found.append((number, self._written(number)))
        except TemplateError as error:
            self._change(error)
            return self.answers()
        return found

    def _chat(self, messages: Sequence[Message], answer: bool) -> str:
        return self.tokenizer.chat([self._given(message) for message in messages], answer, self.tools)

    def _given(self, message: Message) -> Message:
        """The message under all names by which templates ask for it."""
        if message["role"] != "assistant":
            return message
        thought = message.get("reasoning_content")
        found = {**message, **dict.fromkeys(THOUGHT_KEYS, thought)} if thought else message
        if message.get("tool_calls") and not message["content"]:
            found = {**found, "content": self.tokenizer.abilities.empty}
        return found

    def _tell(self) -> None:
        """Tells as text what the template has no place for."""
        has, base = self.tokenizer.abilities, "the base's chat template has no place for"
        turns = list(self.turns)
        if self.tools and not has.tools:
            self.say(f"{base} tools: they are described in the system message")
            described = [tool.get("function", tool) for tool in self.tools]
            turns = with_system(turns, tools_text(json.dumps(described, ensure_ascii=False)))
            self.tools = ()
        if not has.calls and any(turn.message.get("tool_calls") for turn in turns):
            self.say(f"{base} calls of tools: they are written as JSON")
            turns = [Turn(_with_calls(turn.message), turn.learned) for turn in turns]
        if not has.results and any(turn.message["role"] == "tool" for turn in turns):
            self.say(f"{base} results of tools: they are told as the user's messages")
            turns = [Turn({**m, "role": "user"} if m["role"] == "tool" else m, learned) for m, learned in turns]
        if not has.system and turns and turns[0].message["role"] == "system":
            self.say(
                f"{base} a system message: it begins the first question instead, as it must where the model is used "
                "elsewhere"
            )
            turns = _merged(turns, 0)
        late = range(1, len(turns))
        if not has.late_system and any(turns[i].message["role"] == "system" for i in late):
            self.say(f"{base} a system message among others: it begins the next question instead")
            for i in reversed(late):
                if turns[i].message["role"] == "system":
                    turns = _merged(turns, i)
        if has.thought_key:
            turns = [Turn(_with_thought_apart(message), learned) for message, learned in turns]
        self.turns = turns

    def _change(self, error: TemplateError) -> None:
        """Gives a conversation that the template refused another form. Raises `Unusable` where none is left."""
        for change, words in _CHANGES:
            before, self.turns = self.turns, change(self.turns)
            if self.turns != before:
                self.changed = True
                self.say(f"the base's chat template refuses some conversations ({error}): {words}")
                return
        raise Unusable(f"the chat template refuses it: {error}") from None

    def _written(self, number: int) -> Written:
        """Raises `TemplateError`, `Unusable`."""
        before = self._chat(self.messages[:number], answer=True)
        message = self.turns[number].message
        thought, said = thought_of(message)
        if THOUGHT not in message["content"] and message["content"].lstrip().startswith(THINK):
            raise Unusable(
                f"message {number + 1} begins a thought with {THINK} that {THOUGHT} never ends: it is cut off"
            )
        body, end = self._body(number, before, message, thought)
        if message.get("tool_calls") and said.strip() not in body:
            self.say("the base's chat template leaves out what is said beside a call of a tool: it is not learned")
        if not thought:
            if _EMPTY.match(body) and THOUGHT not in message["content"]:
                self.say(
                    "the base's chat template writes a thought before each answer, an empty one where there is none"
                )
        elif thought not in body:
            opened = _OPENED.search(before)
            if self.tokenizer.abilities.thoughts and not opened:
                body = f"{THINK}\n{thought}\n{THOUGHT}\n\n{_BLOCK.sub('', body, count=1)}"
            else:
                self.say(
                    "the base's chat template has no place for a thought, which is not learned: write it into the "
                    f"answer, between {THINK} and {THOUGHT}, or give a --template that has one"
                )
        return Written(before, body, end)

    def _body(self, number: int, before: str, message: Message, thought: str) -> tuple[str, str]:
        """What the template makes of the answer `message`, and what ends it."""
        text, end = self._ended(self._chat([*self.messages[:number], message], answer=False))
        if text.startswith(before):
            return text[len(before) :], end
        opened = _OPENED.search(before)
        if opened:  # the prompt begins a thought that the template leaves out afterwards
            start = before[: opened.start()]
            body = text[len(start) :] if text.startswith(start) else self._after(start, text, number)
            if body is not None:
                said = _BLOCK.sub("", body, count=1) if _BLOCK.match(body) else body
                return (said if opened[1] else f"{thought}\n{THOUGHT}\n\n{said.lstrip()}"), end
        body = self._after(before, text, number)
        if body is None:
            body = self._from_head(number, text) if message.get("tool_calls") else message["content"]
        return body, end

    def _from_head(self, number: int, text: str) -> str:
        """What stands in `text` where the words of an answer would begin: some templates begin an answer for the model,
        with an empty thought or a phrase, but not one that calls a tool."""
        said = self._chat([*self.messages[:number], {"role": "assistant", "content": _ANSWER}], answer=False)
        head = said[: said.rfind(_ANSWER)]
        if not head or not text.startswith(head):
            raise Unusable("the chat template changes the conversation when it calls a tool")
        return text[len(head) :]

    def _ended(self, text: str) -> tuple[str, str]:
        """What is written up to the end of its last turn, and that end."""
        usual = self.tokenizer.turn_end
        if text.endswith(usual + self.tokenizer.turn_rest):
            return text.removesuffix(self.tokenizer.turn_rest).removesuffix(usual), usual
        shown = text.rstrip()
        end = max((stop for stop in self.tokenizer.stop_texts if shown.endswith(stop)), key=len, default=None)
        return (shown.removesuffix(end), end) if end else (text, usual)  # some leave the last turn open

    def _after(self, before: str, text: str, number: int) -> str | None:
        """What `text` holds after the end of `before`, where its beginning differs (a system message that is put into
        the last question); None where it does not hold that end, from the last message on."""
        asked = str(self.messages[number - 1]["content"]).strip()
        least = len(before) - before.rfind(asked) - len(asked) + 1 if asked and asked in before else len(before)
        if least > len(before) or before[len(before) - least :] not in text:
            return None
        low, high = least, len(before)  # the longest end of `before` that is in the text
        while low < high:
            middle = (low + high + 1) // 2
            if before[len(before) - middle :] in text:
                low = middle
            else:
                high = middle - 1
        ending = before[len(before) - low :]
        return text[text.rfind(ending) + len(ending) :]


def _with_thought_apart(message: Message) -> Message:
    thought, said = thought_of(message)
    in_text = message["role"] == "assistant" and thought and "reasoning_content" not in message
    return {**message, "content": said, "reasoning_content": thought} if in_text else message


def _with_calls(message: Message) -> Message:
    if not message.get("tool_calls"):
        return message
    rest = {name: value for name, value in message.items() if name != "tool_calls"}
    return {**rest, "content": "\n".join([*filter(None, [message["content"]]), *called(message)])}


def _merged(turns: list[Turn], number: int) -> list[Turn]:
    """With a system's message at the beginning of the user's next, or in the place of one."""
    told = turns[number].message["content"]
    asks = number + 1 < len(turns) and turns[number + 1].message["role"] == "user"
    text = f"{told}\n\n{turns[number + 1].message['content']}" if asks else told
    return [*turns[:number], Turn({"role": "user", "content": text}, False), *turns[number + 1 + asks :]]


def _alternating(turns: Sequence[Turn]) -> list[Turn]:
    """A question first, and no two messages of the user or of the assistant one after another."""
    asked = next((i for i, turn in enumerate(turns) if turn.message["role"] == "user"), 0)
    kept = [turn for i, turn in enumerate(turns) if i >= asked or turn.message["role"] == "system"]
    joined: list[Turn] = []
    for plain, group in itertools.groupby(kept, key=_joinable):
        if plain is None:
            joined += group
            continue
        each = list(group)
        text = "\n\n".join(turn.message["content"] for turn in each)
        whole = Turn({"role": plain, "content": text}, all(turn.learned for turn in each))
        joined.append(whole if len(each) > 1 else each[0])
    return joined


def _joinable(turn: Turn) -> str | None:
    """The role of a message that may be joined with the next of its role."""
    role: str = turn.message["role"]
    return role if role == "user" or (role == "assistant" and turn.message.keys() == {"role", "content"}) else None


def _numbered(turns: Sequence[Turn]) -> list[Turn]:
    """With ids of nine characters for calls and their results, as some templates ask for."""
    known: dict[str, str] = {}
    calls, results = itertools.count(1), itertools.count(1)

    def called(call: dict[str, Any]) -> dict[str, Any]:
        new = f"call{next(calls):05}"
        known[call.get("id", new)] = new
        return {**call, "id": new}

    def numbered(message: Message) -> Message:
        if message.get("tool_calls"):
            return {**message, "tool_calls": [called(call) for call in message["tool_calls"]]}
        if message["role"] == "tool":
            following = f"call{next(results):05}"
            return {**message, "tool_call_id": known.get(message.get("tool_call_id", ""), following)}
        return message

    return [Turn(numbered(message), learned) for message, learned in turns]


# What is tried, one after another, where a template refuses a conversation.
_CHANGES: tuple[tuple[Callable[[Sequence[Turn]], list[Turn]], str], ...] = (
    (_numbered, "their calls of tools are numbered anew"),
    (
        _alternating,
        "messages of one speaker that follow each other are joined, and what the assistant says before any question is "
        "left out",
    ),
)


def check_texts(tokenizer: Tokenizer, messages: Sequence[Message], tools: Tools = ()) -> None:
    """Text that spells a control token would end a turn or forge one; text that is not Unicode cannot be read."""
    told = [json.dumps(tools, ensure_ascii=False)] if tools else []
    for text in (*told, *(text for message in messages for text in texts_of(message))):
        check_unicode(text)
        control = next((token for token in tokenizer.control_texts if token in text), None)
        if control:
            raise Unusable(f"the text holds the control token {control!r} of this base")
