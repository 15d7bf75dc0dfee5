"""`POST /v1/completions`: text that is continued as it stands."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.responses import Response

from afina.models.tokenizer import Tokenizer
from afina.serving.http import logprobs
from afina.serving.http.asking import Asked, Prompt, Text, new_tokens, room_for_prompt, sampling_of, scale_of, seeds
from afina.serving.http.body import Shape
from afina.serving.http.errors import invalid, unsupported
from afina.serving.http.forms import form_of, grammar_of
from afina.serving.http.prompts import beside, text_prompt
from afina.serving.http.route import Call, Route
from afina.serving.http.sse import EventStream, Frame
from afina.serving.http.writing import Head, Usage, Writing, Written, timing_of, usage_of
from afina.serving.service import Handle, ModelFacts, Piece, Wanted

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
        raise invalid("the prompt is empty", "prompt")
    if len(asked.prompts) * (asked.n or 1) > _MOST_PROMPTS:
        raise invalid(f"one request has up to {_MOST_PROMPTS:,} answers", "n")
    most = _DEFAULT if asked.max_tokens is None else asked.max_tokens
    if most == 0 and not asked.echo:
        raise invalid("max_tokens is 0, and without echo nothing would be answered", "max_tokens")
    with ExitStack() as held:
        handle = held.enter_context(closing(call.open(asked.model)))
        facts, tokenizer = handle.facts, handle.tokenizer
        if not tokenizer.task.writes_text:
            raise invalid(f"{facts.id!r} is a classifier: ask it at /v1/classify", "model")
        scale = scale_of(asked, facts)
        room = room_for_prompt(facts, most) if asked.extras.truncate else None
        size = sum(map(len, asked.prompts))
        prompts = await beside(size, lambda: [text_prompt(tokenizer, facts, each, room) for each in asked.prompts])
        grammar = await grammar_of(form_of(asked, None, None), tokenizer, str(asked.extras.form))
        wanted = [
            Wanted(
                prompt.ids,
                new_tokens(asked, most, facts, len(prompt.ids)),
                sampling_of(asked, facts, tokenizer, seed, grammar.start() if grammar else None),
                asked.logprobs,
                bool(asked.echo),
                scale,
            )
            for prompt in prompts
            for seed in seeds(asked)
        ]
        begun = await call.unless_gone(Writing.begin(call.context, handle, wanted))
        writing = held.enter_context(closing(begun))
        shapes = _Shapes(call, handle, writing, prompts)
        if asked.stream:
            pieces = await call.unless_gone(writing.next(call.context.ping_s))
            return EventStream(call, writing, shapes, pieces, held.pop_all())
        return shapes.whole(await call.unless_gone(writing.whole()))


class _Shapes:
    """Makes the answer of what was written, whole or in frames."""

    def __init__(self, call: Call[CompletionBody], handle: Handle, writing: Writing, prompts: list[Prompt]) -> None:
        self.call, self.asked, self.writing, self.prompts = call, call.body, writing, prompts
        self.tokenizer: Tokenizer = handle.tokenizer
        self.facts: ModelFacts = handle.facts
        self.head = Head.of("cmpl", "text_completion", handle)
        self.usage = {"usage": None} if self.asked.includes_usage else {}
        self.sent = [0] * len(writing.streams)  # characters
        self.echoed = [False] * len(writing.streams)

    def whole(self, found: list[Written]) -> dict[str, Any]:
        choices = []
        for i, each in enumerate(found):
            text, told = self._with_prompt(i, each.text, each.tokens)
            choices.append(self._choice(i, text, told, each.finish_reason, each.stop_reason))
        return {**self.head.fields, "choices": choices, "usage": self._usage(), "afina": self._own()}

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

    def _choice(
        self, index: int, text: str, told: dict[str, Any] | None, reason: str | None, by: str | int | None
    ) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": told, "finish_reason": reason, "stop_reason": by}

    def first(self) -> Iterator[Frame]:
        return iter(())

    def of(self, index: int, piece: Piece) -> Iterator[Frame]:
        if not (piece.text or piece.tokens or piece.finish_reason):
            return
        text, told = self._with_prompt(index, piece.text, piece.tokens)
        frame = {
            **self.head.fields,
            "choices": [self._choice(index, text, told, piece.finish_reason, piece.stop_reason)],
            **self.usage,
        }
        yield frame

    def last(self) -> Iterator[Frame]:
        usage = self._usage()
        if self.asked.includes_usage:
            yield {**self.head.fields, "choices": [], "usage": usage, "afina": self._own()}

    def _usage(self) -> dict[str, Any]:
        found = usage_of([len(prompt.ids) for prompt in self.prompts], self.writing.streams)
        self.call.served.prompt_tokens = found["prompt_tokens"]
        self.call.served.generated_tokens = found["completion_tokens"]
        return found

    def _own(self) -> dict[str, Any]:
        """What Afina says beside."""
        found: dict[str, Any] = timing_of(self.writing.streams)
        warnings = [warning for prompt in self.prompts for warning in prompt.warnings]
        if (
            self.facts.template
            and self.facts.task != "text"
            and not any(isinstance(p, list) for p in self.asked.prompts)
        ):
            warnings.append("the model answers conversations; here it gets text without its chat template")
        if truncated := sum(prompt.truncated for prompt in self.prompts):
            found["truncated_tokens"] = truncated
        if warnings:
            found["warnings"] = warnings
        if self.call.ignored:
            found["ignored"] = self.call.ignored
        return found


ROUTES = Route("POST", "/v1/completions", "Text that goes on", complete, CompletionBody, TextAnswer, streams=True)
