"""`POST /v1/chat/completions`."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.responses import Response

from afina.serving.http import logprobs
from afina.serving.http.asking import Asked, Prompt, new_tokens, room_for_prompt
from afina.serving.http.body import Body, Shape
from afina.serving.http.errors import invalid, unsupported
from afina.serving.http.forms import Calling, ResponseFormat, Tool, calling_of, form_of, grammar_of
from afina.serving.http.prompts import beside, chat_of, chat_prompt
from afina.serving.http.route import Call, Route
from afina.serving.http.routes._answering import Opened, Shapes, opened
from afina.serving.http.sse import Frame
from afina.serving.http.tools import Delta, Finder
from afina.serving.http.writing import Usage, Writing, Written
from afina.serving.schema import Grammar
from afina.serving.service import Piece

_PART_KEYS = {"text": {"type", "text"}, "refusal": {"type", "refusal"}}
_Long = Annotated[str, Field(max_length=4 << 20)]


class CalledFunction(Body):
    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCall(Body):
    id: str | None = None
    index: int | None = None
    type: Literal["function"] | None = None
    function: CalledFunction


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: _Long | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    # What the answers of OpenAI's API have beside, for clients that send them back as they are.
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


class ChatBody(Asked):
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)]
    max_tokens: Annotated[int, Field(ge=1, le=1 << 24)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1 << 24)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="refused: prompts are made as in training")
    continue_final_message: bool | None = None

    @property
    def most(self) -> int | None:
        if self.max_completion_tokens is not None and self.max_tokens not in (None, self.max_completion_tokens):
            raise invalid("max_tokens and max_completion_tokens differ: give one of them", "max_tokens")
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def told(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def check_told(self) -> None:
        """Raises `HttpError`."""
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs needs logprobs: true", "top_logprobs")


class ChatAnswerMessage(Shape):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[dict[str, Any]] | None = None


class ChatChoice(Shape):
    index: int
    message: ChatAnswerMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    stop_reason: str | int | None = None


class ChatAnswer(Shape):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    afina: dict[str, Any]


async def chat(call: Call[ChatBody]) -> Response | dict[str, Any]:
    asked = call.body
    asked.check_stream_options()
    if asked.chat_template_kwargs:
        raise unsupported("prompts are made as in training: chat_template_kwargs cannot change that",
                          "chat_template_kwargs")  # fmt: skip
    for number, message in enumerate(asked.messages):
        _check_parts(message, number)
    most = asked.most
    asked.check_told()
    with opened(call) as model:
        facts, tokenizer = model.handle.facts, model.handle.tokenizer
        calling = calling_of(asked.tools, asked.tool_choice, tokenizer)
        form = form_of(asked, asked.response_format, calling)
        conversation = chat_of(
            [each.model_dump(exclude_none=True) for each in asked.messages],
            calling.tools if calling else (),
            bool(asked.continue_final_message),
        )
        room = room_for_prompt(facts, most) if asked.extras.truncate else None
        prompt = await beside(conversation.characters, lambda: chat_prompt(tokenizer, facts, conversation, room))
        new = new_tokens(asked, most, facts, len(prompt.ids))
        param = "tools" if calling and form is calling.form else asked.extras.form or "response_format"
        grammar = await grammar_of(form, tokenizer, param)
        wanted = model.wanted(prompt, new, grammar)
        return await model.answer(wanted, lambda writing: _Shapes(model, writing, prompt, calling, grammar))


def _check_parts(message: ChatMessage, number: int) -> None:
    """Raises `HttpError` for a key of a part that nobody knows. What is no text is refused where it is read."""
    for at, part in enumerate(message.content if isinstance(message.content, list) else ()):
        known = _PART_KEYS.get(str(part.get("type")), {*part})
        if odd := sorted(part.keys() - known):
            raise unsupported(f"there is no field 'messages.{number}.content.{at}.{odd[0]}'", "messages")


class _Shapes(Shapes[ChatBody]):
    def __init__(
        self, opened: Opened[ChatBody], writing: Writing, prompt: Prompt, calling: Calling | None,
        grammar: Grammar | None,
    ) -> None:  # fmt: skip
        kind = "chat.completion.chunk" if opened.call.body.stream else "chat.completion"
        super().__init__(opened, writing, [prompt], "chatcmpl", kind)
        self.is_json = grammar is not None and grammar.form.is_json
        self.finders = [Finder(calling.dialect, calling.names) if calling else None for _ in writing.streams]
        self.texts = [""] * len(writing.streams)
        self.left = len(writing.streams)  # answers whose end is not told

    def choice(self, index: int, found: Written) -> dict[str, Any]:
        self.texts[index] = found.text
        deltas = [*self._deltas(index, found.text, True)]
        content = "".join(delta.content for delta in deltas)
        calls = dict[int, dict[str, Any]]()
        for delta in deltas:
            if delta.name is not None:
                calls[delta.index] = {k: v for k, v in delta.shape.items() if k != "index"}
            elif not delta.content:
                calls[delta.index]["function"]["arguments"] += delta.arguments
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if calls:
            message |= {"content": content or None, "tool_calls": [*calls.values()]}
        told = logprobs.of_chat(self.tokenizer, found.tokens) if self.asked.logprobs else None
        return {
            "index": index,
            "message": message,
            "logprobs": told,
            "finish_reason": self._reason(index, found.finish_reason),
            "stop_reason": found.stop_reason,
        }

    def _deltas(self, index: int, text: str, is_end: bool) -> Iterator[Delta]:
        """What is told of more text of an answer."""
        finder = self.finders[index]
        if finder is None:
            if text:
                yield Delta(text)
            return
        found = [*finder.add(text), *(finder.finish() if is_end else ())]
        if self.asked.parallel_tool_calls is False:
            found = [delta for delta in found if delta.content or delta.index == 0]
        yield from found
        if is_end and (rest := finder.rest()):
            yield Delta(rest)

    def _reason(self, index: int, reason: str | None) -> str | None:
        finder = self.finders[index]
        return "tool_calls" if finder and finder.calls and reason == "stop" else reason

    def first(self) -> Iterator[Frame]:
        for index in range(len(self.writing.streams)):
            yield self._frame(index, {"role": "assistant", "content": ""})

    def of(self, index: int, piece: Piece) -> Iterator[Frame]:
        self.texts[index] += piece.text
        told = logprobs.of_chat(self.tokenizer, piece.tokens) if self.asked.logprobs and piece.tokens else None
        for delta in self._deltas(index, piece.text, piece.finish_reason is not None):
            shape = {"content": delta.content} if delta.content else {"tool_calls": [delta.shape]}
            yield self._frame(index, shape, told)
            told = None
        if told:
            yield self._frame(index, {"content": ""}, told)
        if piece.finish_reason is not None:
            self.left -= 1
            frame = self._frame(index, {}, None, self._reason(index, piece.finish_reason))
            if piece.stop_reason is not None:
                frame["choices"][0]["stop_reason"] = piece.stop_reason
            if not self.left:
                frame["afina"] = self.own()
            yield frame

    def _frame(
        self, index: int, delta: dict[str, Any], told: dict[str, Any] | None = None, reason: str | None = None
    ) -> Frame:
        return self.frame({"index": index, "delta": delta, "logprobs": told, "finish_reason": reason})

    def own(self) -> dict[str, Any]:
        return super().own() | ({"valid_json": all(map(_is_json, self.texts))} if self.is_json else {})


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


ROUTES = Route("POST", "/v1/chat/completions", "An answer to a conversation", chat, ChatBody, ChatAnswer, streams=True)
