"""`POST /v1/completions`: text that is continued as it stands."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.responses import Response

from afina.serving.http import logprobs
from afina.serving.http.asking import Asked, Prompt, Text, new_tokens, room_for_prompt
from afina.serving.http.body import Shape
from afina.serving.http.errors import invalid, unsupported
from afina.serving.http.forms import form_of, grammar_of
from afina.serving.http.prompts import beside, text_prompt
from afina.serving.http.route import Call, Route
from afina.serving.http.routes._answering import Opened, Shapes, opened
from afina.serving.http.sse import Frame
from afina.serving.http.writing import Usage, Writing, Written
from afina.serving.service import Piece

_DEFAULT = 16  # new tokens, as OpenAI's
_MOST_PROMPTS = 1024
_Ids = Annotated[list[int], Field(min_length=1)]


class CompletionBody(Asked):
    prompt: (
        Text
        | Annotated[list[Text], Field(max_length=_MOST_PROMPTS)]
        | _Ids
        | Annotated[list[_Ids], Field(max_length=_MOST_PROMPTS)]
    )
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: Literal[1] | None = None
    suffix: str | None = Field(None, description="refused: no text is written before other text")

    @property
    def told(self) -> int | None:
        return self.logprobs

    @property
    def echoes(self) -> bool:
        return bool(self.echo)

    @property
    def prompts(self) -> list[str | list[int]]:
        given = self.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            return [given]
        return [*given]


class TextChoice(Shape):
    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]
    stop_reason: str | int | None = None


class TextAnswer(Shape):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice]
    usage: Usage
    afina: dict[str, Any]


async def complete(call: Call[CompletionBody]) -> Response | dict[str, Any]:
    asked = call.body
    asked.check_stream_options()
    if asked.suffix:
        raise unsupported("suffix is not supported: no text is written before other text", "suffix")
    if not asked.prompts:
        raise invalid("prompt is an empty list: give a text, or token ids", "prompt")
    if len(asked.prompts) * (asked.n or 1) > _MOST_PROMPTS:
        raise invalid(f"one request has up to {_MOST_PROMPTS:,} answers", "n")
    most = _DEFAULT if asked.max_tokens is None else asked.max_tokens
    if most == 0 and not asked.echo:
        raise invalid("max_tokens is 0, and without echo nothing would be answered", "max_tokens")
    with opened(call) as model:
        facts, tokenizer = model.handle.facts, model.handle.tokenizer
        room = room_for_prompt(facts, most) if asked.extras.truncate else None
        size = sum(map(len, asked.prompts))
        prompts = await beside(size, lambda: [text_prompt(tokenizer, facts, each, room) for each in asked.prompts])
        grammar = await grammar_of(form_of(asked, None, None), tokenizer, str(asked.extras.form))
        news = ((prompt, new_tokens(asked, most, facts, len(prompt.ids))) for prompt in prompts)
        wanted = [each for prompt, new in news for each in model.wanted(prompt, new, grammar)]
        return await model.answer(wanted, lambda writing: _Shapes(model, writing, prompts))


class _Shapes(Shapes[CompletionBody]):
    def __init__(self, opened: Opened[CompletionBody], writing: Writing, prompts: list[Prompt]) -> None:
        super().__init__(opened, writing, prompts, "cmpl", "text_completion")
        self.sent = [0] * len(writing.streams)  # characters
        self.echoed = [False] * len(writing.streams)

    def choice(self, index: int, found: Written | Piece) -> dict[str, Any]:
        text, told = self._with_prompt(index, found.text, found.tokens)
        return {
            "index": index,
            "text": text,
            "logprobs": told,
            "finish_reason": found.finish_reason,
            "stop_reason": found.stop_reason,
        }

    def _with_prompt(self, index: int, text: str, tokens: Any) -> tuple[str, dict[str, Any] | None]:
        """Text and likelihoods, after those of the prompt where they are asked for and were not told yet."""
        if self.asked.echo and not self.echoed[index]:
            given = self.asked.prompts[index // (self.asked.n or 1)]
            text = (given if isinstance(given, str) else self.tokenizer.decode(given)) + text
            tokens = (*self.writing.streams[index].prompt, *tokens)
        self.echoed[index] = True
        told = None
        if self.asked.logprobs is not None:
            told = logprobs.of_text(self.tokenizer, tokens, self.sent[index])
        self.sent[index] += len(text)
        return text, told

    def of(self, index: int, piece: Piece) -> Iterator[Frame]:
        if piece.text or piece.tokens or piece.finish_reason:
            yield self.frame(self.choice(index, piece))

    def last(self) -> Iterator[Frame]:
        yield from ({**frame, "afina": self.own()} for frame in super().last())

    def warnings(self) -> list[str]:
        is_text = all(isinstance(each, str) for each in self.asked.prompts)
        if not (is_text and self.facts.template and self.facts.task != "text"):
            return super().warnings()
        return [*super().warnings(), "the model answers conversations; here it gets text without its chat template"]


ROUTES = Route("POST", "/v1/completions", "Text that goes on", complete, CompletionBody, TextAnswer, streams=True)
