"""The one place where a conversation becomes token ids, and where it is decided which of them are learned."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar

from jinja2.exceptions import TemplateError

from afina.data.mapping import Example, Unusable, check_unicode
from afina.models.model import IGNORE_INDEX
from afina.models.tokenizer import Message, Tokenizer

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


def prompt_ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """What the model is given to answer. Raises `Unusable` where the template refuses, or there is no prompt."""
    if not messages:
        raise Unusable("it is plain text, which has no prompt")
    _check_texts(tokenizer, messages)
    if not tokenizer.task.continues_text:
        return tokenizer.encode_input("\n".join(message["content"] for message in messages))
    return _with_bos(tokenizer, tokenizer.encode(_chat(tokenizer, messages, answer=True)))


def render(tokenizer: Tokenizer, example: Example) -> Row:
    """The example as the model is trained on it: every assistant's turn and its end labelled, nothing else.

    The text is cut where generation would begin and tokenised in pieces, so that the ids of a prompt are the same here
    and at inference. An earlier assistant turn that the template changes or drops later raises `Unusable`."""
    if not tokenizer.task.continues_text:
        return _row_plain(tokenizer, example)
    pieces = _pieces(tokenizer, example)
    return _joined(tokenizer, [(piece, tokenizer.encode(piece.text)) for piece in pieces], example.location)


M = TypeVar("M")


def render_batches(
    tokenizer: Tokenizer, batches: Iterable[list[tuple[Example, M]]]
) -> Iterator[tuple[list[tuple[Example, M]], list[Row | Unusable]]]:
    """Each batch with what `render` gives or raises for its examples, many times as fast: all texts of a batch are
    tokenised at once, on all processors, while the next batch is read and written out."""
    before: tuple[list[tuple[Example, M]], list[_Text], Future[list[list[int]]]] | None = None
    with ThreadPoolExecutor(1) as thread:
        for batch in batches:
            texts = [_text(tokenizer, example) for example, _ in batch]
            pieces = [piece.text for text in texts if isinstance(text, list) for piece in text]
            job = thread.submit(tokenizer.encode_all, pieces)
            if before:
                yield before[0], _rows(tokenizer, *before)
            before = batch, texts, job
        if before:
            yield before[0], _rows(tokenizer, *before)


def _text(tokenizer: Tokenizer, example: Example) -> "_Text":
    try:
        return _pieces(tokenizer, example) if tokenizer.task.continues_text else _row_plain(tokenizer, example)
    except Unusable as reason:
        return reason


def _rows(
    tokenizer: Tokenizer, batch: Sequence[tuple[Example, Any]], texts: "Sequence[_Text]", job: Future[list[list[int]]]
) -> list[Row | Unusable]:
    ids = iter(job.result())
    return [
        _joined(tokenizer, [(piece, next(ids)) for piece in text], example.location) if isinstance(text, list) else text
        for (example, _), text in zip(batch, texts, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Text that is tokenised on its own, and whether it is learned."""

    text: str
    learned: bool


_Text: TypeAlias = list[_Piece] | Row | Unusable


def _pieces(tokenizer: Tokenizer, example: Example) -> list[_Piece]:
    """The example's text from its beginning to the end of its last answer. Raises `Unusable`."""
    turns = [*example.messages, {"role": "assistant", "content": _completion(example)}]
    _check_texts(tokenizer, turns)
    if not example.messages:
        end = [] if example.unfinished else [_Piece(tokenizer.inner.eos_token, True)]
        return [_Piece(_completion(example), True), *end]
    pieces: list[_Piece] = []
    text = ""
    for i, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        last = i == len(turns) - 1
        before = _chat(tokenizer, turns[:i], answer=True)
        if not before.startswith(text):
            raise Unusable("the chat template changes earlier turns, so they cannot be learned one by one")
        body, rest = _answer(tokenizer, before, turns[: i + 1], last)
        learned = last or not example.last_only
        pieces += [_Piece(before[len(text) :], False), _Piece(body, learned), _Piece(tokenizer.turn_end, learned)]
        if not last:
            pieces.append(_Piece(rest, False))
        text = before + body + tokenizer.turn_end + rest
    return pieces


def _completion(example: Example) -> str:
    if example.completion is None:
        raise Unusable("there is no completion to learn")
    return example.completion


def _joined(tokenizer: Tokenizer, pieces: Sequence[tuple[_Piece, list[int]]], location: str) -> Row:
    ids: list[int] = []
    labels: list[int] = []
    for piece, tokens in pieces:
        ids += tokens
        labels += tokens if piece.learned else [IGNORE_INDEX] * len(tokens)
    if labels:
        labels[0] = IGNORE_INDEX  # nothing comes before it from which it could be predicted
    with_bos = _with_bos(tokenizer, ids)
    return Row(with_bos, [IGNORE_INDEX] * (len(with_bos) - len(ids)) + labels, location)


def _row_plain(tokenizer: Tokenizer, example: Example) -> Row:
    """For a classifier the number of the class, as the second label: it then stands at the first token, as every label
    does at the token before its own. For an encoder-decoder the answer follows the text, and all of it is labelled."""
    completion = _completion(example)
    if not example.messages:
        raise Unusable("plain text is learned by bases that write text, such as starter")
    ids = prompt_ids(tokenizer, example.messages)
    if tokenizer.task.writes_text:
        _check_texts(tokenizer, [{"role": "assistant", "content": completion}])
        answer = [*tokenizer.encode(completion), *tokenizer.stop_ids]
        return Row(ids + answer, [IGNORE_INDEX] * len(ids) + answer, example.location)
    if completion not in tokenizer.classes:
        raise Unusable(f"its class {completion!r} is not one of those that the model knows")
    labels = [IGNORE_INDEX, tokenizer.classes.index(completion), *[IGNORE_INDEX] * (len(ids) - 2)]
    return Row(ids, labels, example.location)


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Plain text for the model to continue. Raises `Unusable` where it spells a control token."""
    _check_texts(tokenizer, [{"role": "user", "content": text}])
    return _with_bos(tokenizer, tokenizer.encode(text))


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


def _check_texts(tokenizer: Tokenizer, messages: Sequence[Message]) -> None:
    """Text that spells a control token would end a turn or forge one; text that is not Unicode cannot be read."""
    for message in messages:
        check_unicode(message["content"])
        control = next((token for token in tokenizer.control_texts if token in message["content"]), None)
        if control:
            raise Unusable(f"the text holds the control token {control!r} of this base")


def _chat(tokenizer: Tokenizer, messages: Sequence[Message], answer: bool) -> str:
    try:
        return tokenizer.chat(list(messages), answer)
    except TemplateError as error:
        raise Unusable(f"the chat template refuses it: {error}") from None


def _answer(tokenizer: Tokenizer, before: str, turns: Sequence[Message], last: bool) -> tuple[str, str]:
    """The answer's text as the template writes it (some trim it), and what follows the end of turn."""
    text = _chat(tokenizer, turns, answer=False)
    closing = tokenizer.turn_end + tokenizer.turn_rest
    if text.startswith(before) and text.endswith(closing):
        return text[len(before) : len(text) - len(closing)], tokenizer.turn_rest
    if not last:
        raise Unusable("the chat template changes earlier turns, so they cannot be learned one by one")
    # A template that treats the last answer differently (an empty thought, no end of turn): as generation continues.
    return str(turns[-1]["content"]), tokenizer.turn_rest


def _with_bos(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    bos = tokenizer.bos_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]
