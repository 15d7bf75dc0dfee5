"""A chat template as a row of turns, for programs that cannot run Jinja, and the same in the words of Go.

Nothing is known of a template by its name. `turns_of` renders conversations with the template itself, takes what stands
around each message, and then tries whether a row of such turns gives what the template gives, for other conversations;
where it does not, there is no answer. Ollama's TEMPLATE (Go's text/template over .Messages) is written from the turns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jinja2.exceptions import TemplateError

from afina.core.errors import brief
from afina.data.conversation import Conversation
from afina.data.mapping import Turn, Unusable
from afina.models.tokenizer import Message, Tokenizer

Around = tuple[str, str]  # what stands before and after the text of a message


_IS_LAST = "(eq (len (slice $.Messages $i)) 1)"


class NoTurns(Exception):
    """Why a template is no row of turns."""


@dataclass(frozen=True)
class Turns:
    """`begin` stands before everything, and `default` after it where no message of the system comes first. Where there
    is no `system` turn of its own, its text begins the first question (the last, where it comes `late`), with `joint`
    after it. `answer` is where the assistant begins."""

    begin: str
    default: str
    user: Around
    assistant: Around
    answer: str
    system: Around | None
    joint: str = ""
    late: bool = False

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt for an answer to `messages`; where the last is the assistant's, as far as it goes."""
        told, text = "", self.begin
        for number, message in enumerate(messages):
            role, content, is_last = message["role"], message["content"], number == len(messages) - 1
            if role == "system" and self.system is None:
                told = content + self.joint
                continue
            if number == 0 and role != "system":
                text += self.default
            before, after = {"system": self.system, "user": self.user}.get(role) or self.assistant
            text += before
            if role == "user" and (is_last or not self.late):
                text, told = text + told, ""
            text += content
            if role != "assistant" or not is_last:
                text += after
        return text if messages[-1]["role"] == "assistant" else text + self.answer

    def go(self) -> str:
        """Ollama's TEMPLATE, which renders as `render` does."""
        if self.system is None:
            system = "{{ $told = $m.Content }}"
            now = f"and $told {_IS_LAST}" if self.late else "$told"
            told = f'{{{{ if {now} }}}}{{{{ $told }}}}{_go(self.joint)}{{{{ $told = "" }}}}{{{{ end }}}}'
        else:
            system, told = "{{ $m.Content }}".join(map(_go, self.system)), ""
        first = (
            f'{{{{ if and (eq $i 0) (ne $m.Role "system") }}}}{_go(self.default)}{{{{ end }}}}' if self.default else ""
        )
        before, after = map(_go, self.assistant)
        return "".join(
            [
                '{{ $last := "" }}{{ $told := "" }}' if told else '{{ $last := "" }}',
                _go(self.begin),
                f"{{{{ range $i, $m := .Messages }}}}{first}",
                f'{{{{ if eq $m.Role "system" }}}}{system}',
                f'{{{{ else if eq $m.Role "user" }}}}{_go(self.user[0])}{told}{{{{ $m.Content }}}}{_go(self.user[1])}',
                f'{{{{ else if eq $m.Role "assistant" }}}}{before}{{{{ $m.Content }}}}',
                f"{{{{ if not {_IS_LAST} }}}}{after}{{{{ end }}}}" if after else "",
                "{{ end }}{{ $last = $m.Role }}{{ end }}",
                f'{{{{ if ne $last "assistant" }}}}{_go(self.answer)}{{{{ end }}}}' if self.answer else "",
            ]
        )


def _go(text: str) -> str:
    """Text as it stands in a template of Go."""
    return text.replace("{{", '{{ "{{" }}')


# Other words than those by which the turns are found, with what templates treat in their own ways: lines, numbers,
# marks of other formats, letters beyond ASCII.
_TRIED: tuple[tuple[str, ...], ...] = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user"),
    ("user", "assistant", "user", "assistant", "user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)
_WORDS = (
    "What is 2 + 2?",
    "Line one.\n\nLine two: {a: [1]}",
    "Olá! É <b>só</b> um teste.",
    "7",
    "水 & co.",
    "– ok –",
    "z",
)


def turns_of(tokenizer: Tokenizer) -> Turns:
    """The turns of the tokenizer's chat template, without the bos token where the tokenizer puts it before a text
    itself. Raises `NoTurns`."""
    template = _Template(tokenizer)
    try:
        for found in _candidates(template):
            if all(found.render(messages) == template.prompt(messages) for messages in _conversations()):
                return found
    except (TemplateError, Unusable) as error:
        raise NoTurns(f"it refuses a plain conversation ({brief(error)})") from error
    raise NoTurns("what it writes for a conversation is no row of turns: it changes or drops what was said before")


def _conversations() -> Iterator[list[Message]]:
    for roles in _TRIED:
        yield [{"role": role, "content": _WORDS[i % len(_WORDS)]} for i, role in enumerate(roles)]


class _Template:
    """What the chat template writes, as training and generation use it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bos = (tokenizer.inner.bos_token or "") if tokenizer.bos_id is not None else ""

    def prompt(self, messages: Sequence[Message]) -> str:
        turns = [Turn(message, False) for message in messages]
        return Conversation(self._tokenizer, turns, (), lambda said: None).prompt().removeprefix(self._bos)

    def question(self, text: str) -> str:
        """A question alone, without the beginning of an answer."""
        return self._tokenizer.chat([{"role": "user", "content": text}], False).removeprefix(self._bos)

    def around(self, *roles: str) -> list[str]:
        """What stands before, between and after the texts of a conversation with these roles."""
        marks = [f"Xq{number}mark" for number in range(len(roles))]
        text = self.prompt([{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)])
        found = []
        for mark in marks:
            before, there, text = text.partition(mark)
            if not there:
                raise NoTurns(f"it drops a message of a conversation of {', '.join(roles)}")
            found.append(before)
        return [*found, text]


def _candidates(template: _Template) -> Iterator[Turns]:
    """What may be the turns: with the system's text in the first question, in the last, and with a turn of its own."""
    first, asked = template.around("user")
    alone = template.question("Xq0mark")
    if not alone.startswith(f"{first}Xq0mark") or not asked.startswith(alone.partition("Xq0mark")[2]):
        raise NoTurns("where an answer begins it writes other turns")
    end = alone.partition("Xq0mark")[2]
    _, to_answer, to_user, *_ = template.around("user", "assistant", "user", "assistant", "user")
    if not to_answer.startswith(end):
        raise NoTurns("after a question that was answered it writes something else than after the last one")
    told, joint, _ = template.around("system", "user")
    answer, answered = asked.removeprefix(end), to_answer.removeprefix(end)
    before = _common_end(first, to_user, told).removeprefix(end)  # what ends a turn does not begin the next one
    begin, after = _without(first, before), _without(to_user, before)
    for late in (False, True):
        yield Turns(begin, "", (before, end), (answered, after), answer, None, joint, late)
    before = _common_end(first, to_user, joint).removeprefix(end)
    default, after, system = _without(first, before), _without(to_user, before), (told, _without(joint, before))
    yield Turns("", default, (before, end), (answered, after), answer, system)


def _without(text: str, end: str) -> str:
    return text[: len(text) - len(end)]


def _common_end(*texts: str) -> str:
    shortest = min(texts, key=len)
    return next((shortest[i:] for i in range(len(shortest)) if all(each.endswith(shortest[i:]) for each in texts)), "")
