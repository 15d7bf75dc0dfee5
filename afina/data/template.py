"""The one place where a conversation becomes token ids, and where it is decided which of them are learned."""

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

from afina.data.conversation import Conversation, Remarks, Tools, Written, check_texts
from afina.data.mapping import Example, Turn, Unusable, said_of, thought_of
from afina.models.model import IGNORE_INDEX
from afina.models.tokenizer import Message, Tokenizer, rendering

_MARGIN = 4  # tokens: a piece alone may take a few tokens more than it took within the text
_WIDEST_TOKEN = 16  # characters; where tokens are longer, a piece gets fewer of them


@dataclass(frozen=True)
class Row:
    """Token ids and labels of one example, of equal length; a label is its own token, or IGNORE_INDEX."""

    input_ids: list[int]
    labels: list[int]
    location: str

    @property
    def labelled(self) -> int:
        return len(self.labels) - self.labels.count(IGNORE_INDEX)

    @property
    def prompt(self) -> list[int]:
        """What comes before the first token that is learned."""
        learned = (i for i, label in enumerate(self.labels) if label != IGNORE_INDEX)
        return self.input_ids[: next(learned, len(self.labels))]


def prompt_ids(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Tools = (), remarks: Remarks | None = None
) -> list[int]:
    """What the model is given to answer. Raises `Unusable` where the template refuses, or there is no prompt."""
    if not messages:
        raise Unusable("it is plain text, which has no prompt")
    said = list[str]()
    conversation = Conversation(tokenizer, [Turn(message, False) for message in messages], tools, said.append)
    ids = (
        with_bos(tokenizer, tokenizer.encode(conversation.prompt()))
        if tokenizer.task.continues_text
        else _input(tokenizer, conversation.messages)
    )
    if remarks:
        remarks.add(said)
    return ids


def render(tokenizer: Tokenizer, example: Example, remarks: Remarks | None = None) -> list[Row]:
    """The example as the model is trained on it: what the assistant writes and its end labelled, nothing else.

    It is one row where the template only ever adds to what was said before; where it changes or drops earlier turns, a
    row of each turn that is learned. The text is cut where generation would begin and tokenised in pieces, so that the
    ids of a prompt are the same here and at inference. Raises `Unusable`."""
    found = _texts(tokenizer, example, remarks or Remarks())
    return [_row(tokenizer, text, map(tokenizer.encode, _pieces(text)), each) for each, text in found]


M = TypeVar("M")
Rendered: TypeAlias = list[tuple[Row, Example]] | Unusable


def render_batches(
    tokenizer: Tokenizer, batches: Iterable[list[tuple[Example, M]]], remarks: Remarks
) -> Iterator[tuple[list[tuple[Example, M]], list[Rendered]]]:
    """Each batch with what `render` gives or raises for its examples, and the example of each row, many times as fast:
    all texts of a batch are tokenised at once, on all processors, while the next batch is read and written out."""
    before: tuple[list[tuple[Example, M]], list[_Texts | Unusable], Future[list[list[int]]]] | None = None
    with ThreadPoolExecutor(1) as thread:
        for batch in batches:
            with rendering(math.inf):
                texts = [_attempted(tokenizer, example, remarks) for example, _ in batch]
            pieces = [piece for each in texts if isinstance(each, list) for _, text in each for piece in _pieces(text)]
            job = thread.submit(tokenizer.encode_all, pieces)
            if before:
                yield before[0], _rows(tokenizer, *before[1:])
            before = batch, texts, job
        if before:
            yield before[0], _rows(tokenizer, *before[1:])


def _attempted(tokenizer: Tokenizer, example: Example, remarks: Remarks) -> "_Texts | Unusable":
    try:
        return _texts(tokenizer, example, remarks)
    except Unusable as reason:
        return reason


def _rows(tokenizer: Tokenizer, texts: "Sequence[_Texts | Unusable]", job: Future[list[list[int]]]) -> list[Rendered]:
    ids = iter(job.result())
    return [
        [(_row(tokenizer, text, ids, example), example) for example, text in each] if isinstance(each, list) else each
        for each in texts
    ]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Text that is tokenised on its own, and whether it is learned."""

    text: str
    learned: bool


_Text: TypeAlias = list[_Piece] | Row
_Texts: TypeAlias = list[tuple[Example, _Text]]  # of each row the example that asks for it


def _pieces(text: _Text) -> list[str]:
    return [piece.text for piece in text] if isinstance(text, list) else []


def _texts(tokenizer: Tokenizer, example: Example, remarks: Remarks) -> _Texts:
    """The rows of an example before their texts are tokenised. Raises `Unusable`."""
    completion = _completion(example)
    if not example.messages:
        if not tokenizer.task.continues_text:
            raise Unusable("plain text is learned by bases that write text, such as starter")
        check_texts(tokenizer, [example.answer])
        end = [] if example.unfinished else [_Piece(tokenizer.inner.eos_token, True)]
        return [(example, [_Piece(completion, True), *end])]
    said = list[str]()
    conversation = Conversation(tokenizer, example.turns, example.tools, said.append)
    if tokenizer.task.continues_text:
        found = _by_turns(conversation, example)
    else:
        found = [(example, _row_plain(tokenizer, example, conversation))]
    remarks.add(said, len(found))
    return found


def _completion(example: Example) -> str:
    if example.completion is None:
        raise Unusable("there is no completion to learn")
    return example.completion


def _by_turns(conversation: Conversation, example: Example) -> _Texts:
    """All that is learned in one row, if the prompt of each answer goes on where the last one ended; else a row
    each."""
    answers = conversation.answers()
    if not answers:
        raise Unusable("the chat template leaves nothing of it to learn")
    pieces: list[_Piece] = []
    text = ""
    for _, written in answers:
        if not written.before.startswith(text):
            return [(_example_at(conversation, number, each, example), _apart(each)) for number, each in answers]
        pieces += _apart(written, len(text))
        text = written.before + written.body + written.end
    number, written = answers[-1]
    if conversation.changed:  # its last answer may be another
        asked = _example_at(conversation, number, written, example)
        unlearned = tuple(i for i in asked.unlearned if not conversation.turns[i].learned)
        return [(replace(asked, unlearned=unlearned), pieces)]
    return [(replace(example, references=_expected(example.answer, written, example.references)), pieces)]


def _apart(written: Written, known: int = 0) -> list[_Piece]:
    """An answer after what is `known` (so many characters) of the text before it."""
    return [_Piece(written.before[known:], False), _Piece(written.body, True), _Piece(written.end, True)]


def _example_at(conversation: Conversation, number: int, written: Written, example: Example) -> Example:
    """What asks for one answer of a conversation."""
    messages = tuple(conversation.messages[:number])
    message = conversation.messages[number]
    asked = [each["content"] for each in messages if each["role"] == "user"]
    is_last = number == len(conversation.messages) - 1 and message["content"] == example.completion
    return replace(
        example,
        messages=messages,
        completion=message["content"],
        references=_expected(message, written, example.references if is_last else (said_of(message),)),
        source=example.source if is_last or not asked else asked[-1],
        unlearned=tuple(i for i, each in enumerate(messages) if each["role"] == "assistant"),
        tools=tuple(conversation.tools),
        extra={name: value for name, value in message.items() if name not in ("role", "content")},
    )


def _expected(message: Message, written: Written, references: tuple[str, ...]) -> tuple[str, ...]:
    """The references of an answer; of one that calls tools the call as the template writes it."""
    if not message.get("tool_calls") or references != (said_of(message),):
        return references
    return (thought_of({"content": written.body})[1].strip(),)


def _row(tokenizer: Tokenizer, text: _Text, tokens: Iterable[list[int]], example: Example) -> Row:
    """The row of an example's text; `tokens` has those of its pieces next."""
    if isinstance(text, Row):
        return text
    ids: list[int] = []
    labels: list[int] = []
    for piece, found in zip(text, tokens, strict=False):
        ids += found
        labels += found if piece.learned else [IGNORE_INDEX] * len(found)
    if labels:
        labels[0] = IGNORE_INDEX  # nothing comes before it from which it could be predicted
    begun = with_bos(tokenizer, ids)
    return Row(begun, [IGNORE_INDEX] * (len(begun) - len(ids)) + labels, example.location)


def _row_plain(tokenizer: Tokenizer, example: Example, conversation: Conversation) -> Row:
    """For a classifier the number of the class, as the second label: it then stands at the first token, as every label
    does at the token before its own. For an encoder-decoder the answer follows the text, and all of it is labelled."""
    *asked, answer = conversation.messages
    completion = str(answer["content"])
    ids = _input(tokenizer, asked)
    if tokenizer.task.writes_text:
        written = [*tokenizer.encode(completion), *tokenizer.stop_ids]
        return Row(ids + written, [IGNORE_INDEX] * len(ids) + written, example.location)
    if completion not in tokenizer.classes:
        raise Unusable(f"its class {completion!r} is not one of those that the model knows")
    labels = [IGNORE_INDEX, tokenizer.classes.index(completion), *[IGNORE_INDEX] * (len(ids) - 2)]
    return Row(ids, labels, example.location)


def _input(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    return tokenizer.encode_input("\n".join(message["content"] for message in messages))


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Plain text for the model to continue. Raises `Unusable` where it spells a control token."""
    check_texts(tokenizer, [{"role": "user", "content": text}])
    return with_bos(tokenizer, tokenizer.encode(text))


def divide(tokenizer: Tokenizer, example: Example, most: int) -> Iterator[Example]:
    """Plain text in pieces of up to `most` tokens, cut at spaces where there are any; nothing is lost."""
    text, at = _completion(example), 0
    room = max(1, most - _MARGIN)
    while at < len(text):
        window = text[at : at + _WIDEST_TOKEN * room]
        ends = tokenizer.ends(window)
        end = len(window) if len(ends) <= room else max(1, ends[room - 1])
        if at + end < len(text):
            space = max(window.rfind(mark, end // 2, end) for mark in "\n ")
            end = space if space > 0 else end
        yield replace(example, completion=text[at : at + end], unfinished=at + end < len(text))
        at += end


def shorten(tokenizer: Tokenizer, example: Example, excess: int) -> Example:
    """The example with at least `excess` tokens cut off the end of the last user's text; the answer stays whole.

    Raises `Unusable` where that text is shorter than what has to go.
    """
    at = max((i for i, m in enumerate(example.messages) if m["role"] == "user"), default=None)
    ids = tokenizer.encode(example.messages[at]["content"]) if at is not None else []
    if at is None or len(ids) <= excess:
        raise Unusable("even without the last question it is too long")
    messages = list(example.messages)
    messages[at] = {**messages[at], "content": tokenizer.decode(ids[: len(ids) - excess])}
    return replace(example, messages=tuple(messages))


def with_bos(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """After the bos token, where the tokenizer itself puts it before a text."""
    bos = tokenizer.bos_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]
