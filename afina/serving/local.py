"""The service of this process: a registry of adapters before one engine."""

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path

import torch

from afina.core.errors import AdapterError, InputError
from afina.core.events import Listener, ignore
from afina.engine.decoder import Decoder
from afina.engine.ops import Segments
from afina.models.load import Base
from afina.models.model import unshared
from afina.models.tokenizer import Tokenizer
from afina.serving.adapters import Adapter, Card, read_adapter, tokenizer_for
from afina.serving.engine import Answer, Engine, Limits
from afina.serving.metrics import Metrics
from afina.serving.probe import probe
from afina.serving.registry import Entry, Registry, Served, stamp_of
from afina.serving.service import Conflict, ModelFacts, Replaced, ServiceFault, State, Stopping, UnknownModel, Wanted

_PATH = re.compile(r"(?<![\w/<.])/(?:[^\s'\":;,()]+/)*([^\s'\":;,()/]*)")
GRACE_SECONDS = 30.0  # in which what runs may finish after the server was told to end
_REPLACED = "the model {!r} was replaced in this moment; ask again"
_AT_ONCE = 16  # rows that a classifier reads together


class LocalService:
    """The `Service` of one base and its adapters.

    `alone` is the name and card of an adapter that is in the base already (merged, or a classifier's): then that is the
    only model.
    """

    def __init__(
        self, base: Base, limits: Limits, roots: Sequence[Path] = (), alone: tuple[str, Card] | None = None,
        listener: Listener = ignore,
    ) -> None:  # fmt: skip
        self.state: State = "loading"
        self.base, self.alone = base, alone
        self._created = int(time.time())
        self._metrics = Metrics()
        self.engine = Engine(base, limits, self._metrics, listener)
        self.registry = Registry(base.facts.name, () if alone else roots, limits.memory // 2)
        self._whole = alone is not None or not isinstance(base.model.module, Decoder)
        self._own = 0  # answers of the base itself
        self._gauges()

    def start(self) -> None:
        """From here on requests are taken."""
        self.engine.start()
        self.state = "ready"

    async def stop(self, grace_s: float = GRACE_SECONDS) -> None:
        """Takes nothing more, lets what runs finish for so long, and ends the rest with `Stopping`."""
        self.state = "stopping"
        if not await self._until(lambda: not self.engine.answers, grace_s):
            self.engine.end_all(lambda: Stopping("the server ended before the answer did"))
            await self._until(lambda: not self.engine.answers, 5.0)

    def close(self) -> None:
        """Ends the engine's thread, whatever is left."""
        self.state = "stopping"
        self.engine.close()

    async def _until(self, done: Callable[[], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not done() and time.monotonic() < end:
            await asyncio.sleep(0.01)
        return done()

    def metrics(self) -> Metrics:
        return self._metrics

    def models(self) -> list[ModelFacts]:
        """See `Service`. Folders in which no adapter can be read are left out."""
        if self.alone:
            return [self._facts_alone(*self.alone)]
        for name in self.registry.names():
            with suppress(AdapterError, UnknownModel, Replaced):
                self._entry(name)
        return [self._base_facts(), *(self._facts(entry, entry.now) for entry in self.registry)]

    def open(self, name: str) -> "LocalHandle":
        """See `Service`."""
        if self.alone:
            if name != self.alone[0]:
                raise (
                    self.registry.unknown(name)
                    if name != self.base.facts.name
                    else UnknownModel(f"this server has {self.alone[0]!r} alone, merged into its base")
                )
            return LocalHandle(self, self._facts_alone(*self.alone), self.base.tokenizer, None, None)
        if name == self.base.facts.name:
            return LocalHandle(self, self._base_facts(), self.base.tokenizer, None, None)
        try:
            entry = self._entry(name)
        except AdapterError as error:
            raise UnknownModel(f"the model {name!r} cannot be used: {_plain(error)[0]}") from error
        if entry is None:
            raise self.registry.unknown(name)
        return LocalHandle(self, self._facts(entry, entry.now), entry.now.tokenizer, entry.now, entry)

    def _entry(self, name: str) -> Entry | None:
        """What the name means; files in a root that are new, or have changed, are a new generation."""
        entry, folder = self.registry.get(name), self.registry.find(name)
        if entry is not None and (folder is None or (entry.folder.parent != folder and entry.folder != folder)):
            return entry  # loaded from elsewhere
        if folder is None or name == self.base.facts.name:
            return entry
        stamp = stamp_of(folder)
        if entry is not None and entry.stamp == stamp:
            return entry
        try:
            card = Card.read(folder)
        except AdapterError as error:
            if stamp_of(folder) == stamp:
                raise
            raise Replaced(_REPLACED.format(name)) from error
        if entry is not None and (entry.now.card.hash, entry.now.card.template) == (card.hash, card.template):
            entry.stamp = stamp
            return entry
        tokenizer = tokenizer_for(self.base, card)
        return self.registry.put(name, card, tokenizer, stamp, entry.pinned if entry else False)

    async def load(
        self, name: str, path: Path, pin: bool = False, replace: bool = False, expected_generation: int | None = None
    ) -> ModelFacts:
        """See `Service`. Nothing is shown before the adapter has changed some logits."""
        self.registry.check_name(name)
        folder = self.registry.inside(path)
        try:
            return await self.take_in(name, folder, pin, replace, expected_generation)
        except InputError as error:
            raise AdapterError(_plain(error), _PATH.sub(r"\1", error.remedy)) from error

    async def take_in(
        self, name: str, folder: Path, pin: bool = False, replace: bool = False, expected: int | None = None
    ) -> ModelFacts:
        """`load`, from a folder wherever it is."""
        if self._whole:
            how = "has an adapter in it already" if self.alone else "runs through transformers, where rows share all"
            raise AdapterError(
                f"the model {how}, and takes no others", "serve one adapter alone, merged into its base (--merge NAME)"
            )
        self.registry.check(name, replace, expected)
        begun = self.registry.get(name)
        stamp = stamp_of(folder)
        card, tokenizer, adapter, size = await self._read(name, folder)
        if self.registry.get(name) is not begun:  # somebody else was faster
            self.registry.check(name, replace and expected is None, expected)
        room = self.registry.make_room(size)
        entry = self.registry.put(name, card, tokenizer, stamp, pin)
        entry.now.adapter, entry.now.bytes, entry.now.used = adapter, size, time.monotonic()
        self._let_go(room)
        return self._facts(entry, entry.now)

    async def _read(self, name: str, folder: Path) -> tuple[Card, Tokenizer, Adapter, int]:
        """Read and checked beside the engine's work, tried between two of its steps."""

        def read() -> tuple[Card, Tokenizer, Adapter]:
            card = Card.read(folder)
            return card, tokenizer_for(self.base, card), read_adapter(self.base, card, name)

        card, tokenizer, adapter = await asyncio.to_thread(read)
        size = await asyncio.wrap_future(self.engine.call(lambda: probe(self.base, adapter, name)))
        return card, tokenizer, adapter, size

    async def loaded(self, entry: Entry, served: Served) -> Adapter:
        """The adapter of a generation, read where it is not in memory. Raises `ServiceFault`."""
        async with served.loading:
            if served.is_gone:
                raise UnknownModel(f"the model {entry.name!r} was unloaded")
            if served.adapter is None:
                folder = served.card.folder
                try:  # where a link leads now: it may lead elsewhere before all is read
                    card, _, adapter, size = await self._read(entry.name, folder.resolve())
                except InputError as error:
                    if entry.now is served and stamp_of(folder) == entry.stamp:
                        raise UnknownModel(f"the model {entry.name!r} cannot be used: {_plain(error)[0]}") from error
                    raise Replaced(_REPLACED.format(entry.name)) from error
                if card.hash != served.card.hash:
                    raise Replaced(_REPLACED.format(entry.name))
                room = self.registry.make_room(size)
                served.adapter, served.bytes = adapter, size
                self._let_go(room)
            return served.adapter

    async def unload(self, name: str, expected_generation: int | None = None, wait_s: float = 30.0) -> tuple[int, bool]:
        """See `Service`."""
        entry = self.registry.get(name)
        if entry is None:
            if name in (self.base.facts.name, self.alone and self.alone[0]):
                raise Conflict(f"{name!r} is what this server was started with", "adapter_in_use")
            raise self.registry.unknown(name)
        self.registry.check_generation(name, expected_generation)
        served = entry.now
        self.registry.drop(name)
        drained = await self._until(lambda: not served.users and not served.cancels, wait_s)
        served.is_gone = True
        for cancel in list(served.cancels):
            cancel()
        await self._until(lambda: not served.cancels, 5.0)
        size = served.bytes
        self._let_go([served])
        return size, drained

    def _let_go(self, going: Sequence[Served]) -> None:
        """Frees adapters. Keys and values that are kept for them are found by no other hash, and make way for more."""
        for served in going:
            served.adapter, served.bytes = None, 0
        self.engine.adapter_bytes = self.registry.bytes

    def _base_facts(self) -> ModelFacts:
        facts = self.base.facts
        return ModelFacts(
            facts.name, facts.name, None, facts.sha256, facts.sha256, 1, self._created, facts.context_length,
            template=bool(self.base.tokenizer.inner.chat_template), requests=self._own,
        )  # fmt: skip

    def _facts(self, entry: Entry, served: Served) -> ModelFacts:
        facts, card = self.base.facts, served.card
        return ModelFacts(
            entry.name, card.folder.parent.name if card.folder.name == "adapter" else card.folder.name, facts.name,
            card.hash, facts.sha256, served.generation, served.created, facts.context_length, served.bytes,
            served.adapter.rank if served.adapter else card.rank, card.form, _task(card), pinned=entry.pinned,
            template=card.template is not None or bool(served.tokenizer.inner.chat_template),
            requests=len(served.cancels),
        )  # fmt: skip

    def _facts_alone(self, name: str, card: Card) -> ModelFacts:
        facts, tokenizer = self.base.facts, self.base.tokenizer
        return ModelFacts(
            name, name, facts.name, card.hash, facts.sha256, 1, self._created, facts.context_length, 0, card.rank,
            card.form, _task(card), bool(tokenizer.inner.chat_template), True, self._own, tokenizer.classes,
        )  # fmt: skip

    def _gauges(self) -> None:
        gauge, engine, registry = self._metrics.gauge, self.engine, self.registry
        gauge("afina_requests_running", "Answers in the batch.", lambda: engine.running)
        gauge("afina_requests_waiting", "Requests before the batch.", lambda: engine.waiting)
        gauge("afina_kv_bytes", "Keys and values held.", lambda: engine.batcher.kv_bytes)
        gauge(
            "afina_adapters_loaded", "Adapters in memory.",
            lambda: sum(entry.now.adapter is not None for entry in registry),
        )  # fmt: skip
        gauge("afina_adapter_bytes", "Bytes of the adapters in memory.", lambda: registry.bytes)
        gauge(
            "afina_adapter_info", "Which weights a name means.",
            lambda: {(e.name, e.now.card.hash[:16], str(e.now.generation)): 1.0 for e in registry},
            ("model", "hash", "generation"),
        )  # fmt: skip


class LocalHandle:
    """See `Handle`."""

    def __init__(
        self, service: LocalService, facts: ModelFacts, tokenizer: Tokenizer, served: Served | None,
        entry: Entry | None,
    ) -> None:  # fmt: skip
        self.facts, self.tokenizer = facts, tokenizer
        self._service, self._served, self._entry = service, served, entry
        self._open = True
        if served is not None:
            served.users += 1
            served.used = time.monotonic()

    def close(self) -> None:
        if self._open and self._served is not None:
            self._served.users -= 1
        self._open = False

    async def generate(self, wanted: Wanted) -> Answer:
        """See `Handle`."""
        service, served = self._service, self._served
        self._check_ready()
        updates = None
        if served is not None and self._entry is not None:
            updates = (await service.loaded(self._entry, served)).times(wanted.scale)
        answer: Answer

        def over() -> None:
            if served is None:
                service._own -= 1
            else:
                served.cancels.discard(answer.cancel)

        answer = service.engine.submit(wanted, updates, self.tokenizer, over)
        if served is None:
            service._own += 1
        else:
            served.cancels.add(answer.cancel)
        return answer

    def _check_ready(self) -> None:
        if self._service.state != "ready":
            raise Stopping(f"the server is {self._service.state}")

    async def classify(self, prompts: Sequence[list[int]]) -> list[dict[str, float]]:
        """See `Handle`."""
        self._check_ready()
        if not self.facts.labels:
            raise ServiceFault(f"{self.facts.id!r} is no classifier")
        service = self._service
        probabilities = await asyncio.wrap_future(service.engine.call(lambda: _probabilities(service.base, prompts)))
        return [dict(zip(self.facts.labels, row, strict=True)) for row in probabilities]


@torch.inference_mode()
def _probabilities(base: Base, prompts: Sequence[list[int]]) -> list[list[float]]:
    device = next(base.model.module.parameters()).device
    found: list[list[float]] = []
    for at in range(0, len(prompts), _AT_ONCE):
        rows = prompts[at : at + _AT_ONCE]
        ids = torch.tensor([token for row in rows for token in row], device=device)
        packed = unshared(ids, ids, Segments(tuple(accumulate(map(len, rows), initial=0))))
        found += base.model.label_logits(packed).float().softmax(-1).tolist()
    return found


def _plain(error: InputError) -> list[str]:
    """The problems, with the last part of each path alone: whoever asks a server is not told where its files are."""
    return [_PATH.sub(r"\1", problem) for problem in error.problems]


def _task(card: Card) -> str:
    """What the adapter is for: a run's kind of data, else chat."""
    if card.facts.get("task") == "classify":
        return "classify"
    return str(card.facts.get("kind") or "chat")
