"""What chat and completions do alike: a model is opened, its answers are written, and told whole or in frames."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from starlette.responses import Response

from afina.serving.http.asking import Asked, Prompt, sampling_of, scale_of, seeds
from afina.serving.http.errors import invalid
from afina.serving.http.route import Call
from afina.serving.http.sse import EventStream, Frame
from afina.serving.http.writing import Writing, Written, head_of, timing_of, usage_of
from afina.serving.schema import Grammar
from afina.serving.service import Handle, Piece, Wanted

A = TypeVar("A", bound=Asked)


@dataclass(frozen=True)
class Opened(Generic[A]):
    """A request and the model that it names. `held` is what is given up when all is told."""

    call: Call[A]
    handle: Handle
    scale: float
    held: ExitStack

    def wanted(self, prompt: Prompt, new: int, grammar: Grammar | None) -> list[Wanted]:
        """The answers to one prompt, each of up to `new` tokens. Raises `HttpError`."""
        asked, facts, tokenizer = self.call.body, self.handle.facts, self.handle.tokenizer
        return [
            Wanted(
                prompt.ids,
                new,
                sampling_of(asked, facts, tokenizer, seed, grammar.start() if grammar else None),
                asked.told,
                asked.echoes,
                self.scale,
            )
            for seed in seeds(asked)
        ]

    async def answer(
        self, wanted: Sequence[Wanted], shapes_of: "Callable[[Writing], Shapes[A]]"
    ) -> Response | dict[str, Any]:
        """Raises what `Call.unless_gone` and `Writing` do."""
        call = self.call
        begun = await call.unless_gone(Writing.begin(call.context, self.handle, wanted))
        writing = self.held.enter_context(closing(begun))
        shapes = shapes_of(writing)
        if call.body.stream:
            pieces = await call.unless_gone(writing.next(call.context.ping_s))
            return EventStream(call, writing, shapes, pieces, self.held.pop_all())
        return shapes.whole(await call.unless_gone(writing.whole()))


@contextmanager
def opened(call: Call[A]) -> Iterator[Opened[A]]:
    """For as long as the block, or as the stream that comes out of it. Raises `HttpError`."""
    with ExitStack() as held:
        handle: Handle = held.enter_context(closing(call.open(call.body.model)))
        if not handle.tokenizer.task.writes_text:
            raise invalid(f"{handle.facts.id!r} is a classifier: ask it at /v1/classify", "model")
        yield Opened(call, handle, scale_of(call.body, handle.facts), held)


class Shapes(ABC, Generic[A]):
    """Makes the answer of what was written, whole or in frames."""

    def __init__(
        self, opened: Opened[A], writing: Writing, prompts: Sequence[Prompt], prefix: str, object_: str
    ) -> None:
        self.call, self.asked, self.writing, self.prompts = opened.call, opened.call.body, writing, prompts
        self.tokenizer, self.facts = opened.handle.tokenizer, opened.handle.facts
        self.head = head_of(prefix, object_, opened.handle)
        self._no_usage = {"usage": None} if self.asked.includes_usage else {}

    @abstractmethod
    def choice(self, index: int, found: Written) -> dict[str, Any]:
        """A whole answer."""

    def whole(self, found: Sequence[Written]) -> dict[str, Any]:
        choices = [self.choice(i, each) for i, each in enumerate(found)]
        return {**self.head, "choices": choices, "usage": self.usage(), "afina": self.own()}

    def first(self) -> Iterator[Frame]:
        """See `Chunks`."""
        yield from ()

    @abstractmethod
    def of(self, index: int, piece: Piece) -> Iterator[Frame]:
        """See `Chunks`."""

    def last(self) -> Iterator[Frame]:
        """See `Chunks`."""
        usage = self.usage()
        if self.asked.includes_usage:
            yield {**self.head, "choices": [], "usage": usage}

    def frame(self, choice: dict[str, Any]) -> Frame:
        return {**self.head, "choices": [choice], **self._no_usage}

    def usage(self) -> dict[str, Any]:
        found = usage_of([len(prompt.ids) for prompt in self.prompts], self.writing.streams)
        self.call.served.prompt_tokens = found["prompt_tokens"]
        self.call.served.generated_tokens = found["completion_tokens"]
        return found

    def warnings(self) -> list[str]:
        return [warning for prompt in self.prompts for warning in prompt.warnings]

    def own(self) -> dict[str, Any]:
        """What Afina says beside."""
        found: dict[str, Any] = timing_of(self.writing.streams)
        if truncated := sum(prompt.truncated for prompt in self.prompts):
            found["truncated_tokens"] = truncated
        if warnings := self.warnings():
            found["warnings"] = warnings
        if self.call.ignored:
            found["ignored"] = self.call.ignored
        return found
