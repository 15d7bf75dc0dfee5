"""The engine: one thread that owns torch, and what the event loop's thread has of it.

The event loop's thread never computes, and this thread never waits for the other: work comes in through an inbox, which
is looked into before each step, and what a step wrote goes out with one call for all answers.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, TypeVar

from afina.core.device import use
from afina.core.errors import AfinaError
from afina.core.events import Listener, Notice, ignore
from afina.core.process.crash import explained
from afina.core.updates import Updates
from afina.models.batcher import Batcher, Request
from afina.models.footprint import cache_bytes
from afina.models.load import Base
from afina.models.sampling import Likelihood
from afina.models.tokenizer import Tokenizer
from afina.serving.metrics import Metrics
from afina.serving.service import NoMemory, Piece, QueueFull, ServiceFault, TooLong, Unanswerable, Wanted

PREFILL_TOKENS = 256  # that a step reads, so that the others' next tokens wait no longer than for these
UNWAITED_TOKENS = 2 * PREFILL_TOKENS  # where there are no others: a second, short pass would read all weights again
IDLE_SECONDS = 10.0  # without a request, after which memory is given back: soon after one another comes, mostly
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What a server takes on at one time. `memory` in bytes is for keys and values and for adapters, beside the base.
    `deterministic`: each pass has the shape that it has when the request is alone."""

    max_batch: int = 32
    max_queue: int = 64
    memory: int = 4 << 30
    deterministic: bool = False

    @property
    def rows(self) -> int:
        return 1 if self.deterministic else self.max_batch


class Answer:
    """An answer as it is written: the `Stream` of the routes. Made, read and cancelled on the event loop's thread."""

    def __init__(self, engine: "Engine", request: Request, on_end: Callable[[], None]) -> None:
        self.request = request
        self.cached_tokens = self.generated_tokens = 0
        self.queue_ms = self.prompt_ms = self.generation_ms = 0.0
        self.prompt: tuple[Likelihood, ...] = ()
        self.is_over = False
        self._engine, self._on_end = engine, on_end
        self._pieces: list[Piece] = []
        self._fault: ServiceFault | None = None
        self._more = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        try:
            while True:
                await self._more.wait()
                self._more.clear()
                pieces, self._pieces = self._pieces, []
                if pieces:
                    yield pieces[0] if len(pieces) == 1 else _joined(pieces)
                if pieces and pieces[-1].finish_reason is not None:
                    return
                if self._fault is not None:
                    raise self._fault
        finally:
            self.cancel()

    def cancel(self) -> None:
        """See `Stream`."""
        if not self.is_over:
            self._engine.cancel(self)

    def deliver(self, news: "_News") -> None:
        request = self.request
        self.cached_tokens, self.generated_tokens = request.cached, news.generated
        if request.echo and not self.prompt:  # whole before anything is delivered
            self.prompt = tuple(request.prompt_likelihoods)
        if request.entered is not None:
            self.queue_ms = 1000 * (request.entered - request.submitted)
        if request.entered is not None and request.read is not None:
            self.prompt_ms = 1000 * (request.read - request.entered)
            self.generation_ms = 1000 * (news.at - request.read)
        if news.piece is not None:
            self._pieces.append(news.piece)
        if news.fault is not None:
            self._fault = news.fault
        if (news.fault or (news.piece and news.piece.finish_reason)) and not self.is_over:
            self.is_over = True
            self._on_end()
        self._more.set()


def _joined(pieces: list[Piece]) -> Piece:
    """Several pieces as one: a reader that is slower than the writer gets fewer."""
    text, tokens = "".join(p.text for p in pieces), tuple(token for p in pieces for token in p.tokens)
    return Piece(text, tokens, pieces[-1].finish_reason, pieces[-1].stop_reason)


@dataclass(frozen=True)
class _News:
    """What a step did for one answer."""

    at: float
    generated: int
    piece: Piece | None = None
    fault: ServiceFault | None = None


class Engine:
    """Computes what requests ask of `base`, on a thread of its own, from `start` to `close`."""

    def __init__(self, base: Base, limits: Limits, metrics: Metrics, listener: Listener = ignore) -> None:
        self.base, self.limits, self.metrics, self._listener = base, limits, metrics, listener
        model: Any = base.model  # an `Answerer` is asked in whole, by `call`
        self.token_bytes = cache_bytes(model.module, base.dtype)
        kept = None if limits.deterministic else limits.memory // 16
        self.batcher = Batcher(model, base.tokenizer, limits.rows, kept=kept, prefill_tokens=PREFILL_TOKENS)
        self.adapter_bytes = 0  # of those that are loaded
        self.answers: set[Answer] = set()  # that are not over; of the event loop's thread
        self._of: dict[Request, Answer] = {}  # of the engine's thread
        self._told: dict[Request, int] = {}  # likelihoods given away
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._seconds = 1.0  # that an answer took, on the whole
        self._thread = threading.Thread(target=self._run, name="afina-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the thread after the step that runs now, whatever is left."""

        def end() -> None:
            self._closed = True

        self._inbox.put(end)
        self._thread.join()

    def call(self, work: Callable[[], T]) -> "Future[T]":
        """Lets the engine's thread do `work` between two steps; what came of it. Nothing is done once whoever waits for
        it has gone."""
        future: Future[T] = Future()

        def do() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        self._inbox.put(do)
        return future

    @property
    def most_tokens(self) -> int:
        """Whose keys and values fit beside the adapters, and beside what is kept of requests that are over."""
        return max(0, self.limits.memory - self.adapter_bytes - (self.batcher.kept or 0)) // self.token_bytes

    def submit(
        self, wanted: Wanted, updates: Updates | None, tokenizer: Tokenizer, on_end: Callable[[], None]
    ) -> Answer:
        """Takes a request on. Raises what `Handle.generate` does."""
        self._check(wanted)
        self._loop = asyncio.get_running_loop()
        top = wanted.logprobs
        request = Request(wanted.prompt_ids, wanted.max_new_tokens, wanted.sampling, updates, top)
        request.echo = wanted.echo and top is not None

        def over() -> None:
            self.answers.discard(answer)
            on_end()

        answer = Answer(self, request, over)
        self.answers.add(answer)

        def add() -> None:
            self._of[request] = answer
            try:
                self.batcher.add(request, tokenizer)
            except Exception as error:  # of this request alone
                request.fail(error)
                self._send([(answer, self._news(request))])

        self._inbox.put(add)
        return answer

    def _check(self, wanted: Wanted) -> None:
        prompt, new, context = len(wanted.prompt_ids), wanted.max_new_tokens, self.base.facts.context_length
        if prompt + new > context:
            self.metrics.rejected.add(1, "too_long")
            raise TooLong(
                f"the prompt has {prompt} tokens and the answer may have {new}, together {prompt + new}; the model's "
                f"context is {context} tokens: shorten the prompt, or ask for fewer"
            )
        if prompt + new > self.most_tokens:
            self.metrics.rejected.add(1, "no_memory")
            raise NoMemory(
                f"{prompt + new} tokens take {(prompt + new) * self.token_bytes >> 20} MB of keys and values, and this "
                f"server has {self.most_tokens * self.token_bytes >> 20} MB for them (--memory)"
            )
        if not prompt or not 0 <= min(wanted.prompt_ids) <= max(wanted.prompt_ids) < self.base.facts.vocabulary:
            raise Unanswerable("the prompt is empty, or has a token that the model does not have")
        self.check_queue(len(self.answers))

    def check_queue(self, taken: int) -> None:
        """Raises `QueueFull` where so many answers are as many as the server takes on."""
        waiting = taken - self.limits.rows
        if waiting >= self.limits.max_queue:
            self.metrics.rejected.add(1, "queue_full")
            ahead = (waiting + 1) / self.limits.rows
            most = self.limits.rows + self.limits.max_queue
            raise QueueFull(waiting, min(60, max(1, ceil(ahead * self._seconds))), most)

    def cancel(self, answer: Answer) -> None:
        request = answer.request

        def cancel() -> None:
            if request.finish_reason is None:
                self.metrics.cancelled.add()
                self.batcher.cancel(request)
                self._send([(answer, self._news(request))])

        self._inbox.put(cancel)

    def end_all(self, why: Callable[[], ServiceFault]) -> None:
        """Ends all answers, those of waiting requests too."""

        def end() -> None:
            left = list(self._of.items())
            for request, _ in left:
                self.batcher.cancel(request)
                request.fail(why())
            self._send([(answer, self._news(request)) for request, answer in left])

        self._inbox.put(end)

    @property
    def waiting(self) -> int:
        return len(self.batcher.waiting)

    @property
    def running(self) -> int:
        return len(self.batcher.active)

    def _run(self) -> None:
        use(next(self.base.model.module.parameters()).device)  # what is current is each thread's own
        is_shrunk = True
        while not self._closed:
            try:
                self._inbox.get(not self.batcher.busy, None if is_shrunk else IDLE_SECONDS)()
            except Empty:
                if not self.batcher.busy:
                    self.batcher.shrink()
                    is_shrunk = True
            with suppress(Empty):
                while not self._closed:
                    self._inbox.get_nowait()()
            if self.batcher.busy and not self._closed:
                self._step()
                is_shrunk = False

    def _step(self) -> None:
        self.batcher.max_tokens = self.most_tokens
        waited = any(request.is_read for request in self.batcher.active)
        self.batcher.prefill_tokens = PREFILL_TOKENS if waited else UNWAITED_TOKENS
        try:
            changed = self.batcher.step()
        except Exception as error:  # of the pass as a whole: none of its rows has an answer
            for request in self.batcher.drop_active():
                request.fail(error)
            changed = [request for request in self._of if request.finish_reason is not None]
            self._listener(Notice(f"a pass failed: {explained(error)}", warning=True))
        if changed:
            self.metrics.rows.add(len(changed))
            keys = {request.updates.key for request in changed if request.updates is not None}
            self.metrics.adapters.add(len(keys))
        self._send([(self._of[request], self._news(request)) for request in changed])

    def _news(self, request: Request) -> _News:
        """What is new of a request, for its reader; of one that is over, the last."""
        now = monotonic()
        if request.generated == 1 and request.finish_reason != "cancelled":
            self.metrics.first_token.add(now - request.submitted)
        if request.finish_reason is None:
            text, tokens = request.text.take()
            piece = Piece(text, self._tokens(request, tokens)) if text or tokens else None
            return _News(now, request.generated, piece)
        self._of.pop(request, None)
        if request.fault is None:
            request.text.end()
            text, tokens = request.text.take()
            reason: Any = request.finish_reason
            piece = Piece(text, self._tokens(request, tokens), reason, request.stop_reason)
            news = _News(now, request.generated, piece)
        else:
            self.metrics.faults.add()
            news = _News(now, request.generated, fault=_told(request.fault))
        self._told.pop(request, None)
        self._count(request, now)
        return news

    def _tokens(self, request: Request, count: int) -> tuple[Likelihood, ...]:
        if request.top is None:
            return ()
        begin = self._told.get(request, 0)
        self._told[request] = begin + count
        return tuple(request.likelihoods[begin : begin + count])

    def _count(self, request: Request, now: float) -> None:
        metrics, seconds = self.metrics, now - request.submitted
        metrics.whole.add(seconds)
        metrics.generated_tokens.add(request.generated)
        if request.entered is not None:
            metrics.queue.add(request.entered - request.submitted)
            metrics.prompt_tokens.add(len(request.prompt_ids))
            metrics.cached_tokens.add(request.cached)
        if request.read is not None and request.generated > 1:
            metrics.per_token.add((now - request.read) / (request.generated - 1))
        self._seconds += 0.1 * (seconds - self._seconds)

    def _send(self, news: list[tuple[Answer, _News]]) -> None:
        if not news or self._loop is None:
            return

        def deliver() -> None:
            for answer, each in news:
                answer.deliver(each)

        with suppress(RuntimeError):  # the loop has ended, and with it whoever reads
            self._loop.call_soon_threadsafe(deliver)


def _told(fault: Exception) -> ServiceFault:
    """What a reader is told of a fault: what is Afina's own words; of others nothing but that there was one."""
    if isinstance(fault, ServiceFault):
        return fault
    return ServiceFault(fault.problems[0] if isinstance(fault, AfinaError) else "the engine failed on this request")
