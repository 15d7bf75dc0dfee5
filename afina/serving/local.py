"""The service of this process: a registry of adapters before one engine."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import accumulate
from pathlib import Path

import torch

from afina.core.errors import AdapterError, InputError
from afina.core.events import Listener, Notice, ignore
from afina.engine.decoder import Decoder
from afina.engine.ops import Segments
from afina.models.load import Base
from afina.models.model import unshared
from afina.models.tokenizer import Tokenizer
from afina.runs.facts import model_name
from afina.serving.adapters import Adapter, Card, read_adapter, tokenizer_for
from afina.serving.engine import Answer, Engine, Limits
from afina.serving.metrics import Metrics
from afina.serving.probe import probe
from afina.serving.registry import Broken, Registry, Served, Stamp, pathless, plain, reason, stamp_of
from afina.serving.service import (
    Conflict,
    ModelFacts,
    NoMemory,
    Replaced,
    ServiceFault,
    State,
    Stopping,
    UnknownModel,
    Wanted,
)

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
        self._listener = listener
        self._looks: dict[str, asyncio.Task[None]] = {}  # names whose files are read in this moment
        self._own = 0  # answers of the base itself, or of a classifier
        self._gauges()

    def start(self) -> None:
        """From here on requests are taken."""
        self.engine.start()
        self.state = "ready"

    async def stop(self, grace_s: float = GRACE_SECONDS) -> None:
        """Takes nothing more, lets what runs finish for so long, and ends the rest with `Stopping`."""
        self.state = "stopping"
        if not await self._until(lambda: not self.engine.answers and not self._own, grace_s):
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

    async def look(self, name: str | None = None) -> None:
        """See `Service`."""

        def changed() -> list[tuple[str, Path, Stamp]]:
            names = self.registry.names() if name is None else [name]
            return [(each, *found) for each in names if (found := self.registry.changed(each)) is not None]

        if self.registry.roots:
            await asyncio.gather(*(self._renewing(*each) for each in await asyncio.to_thread(changed)))

    async def _renewing(self, name: str, folder: Path, stamp: Stamp) -> None:
        """`_renew`, once for all that ask in this moment."""
        task = self._looks.get(name)
        if task is None:
            task = self._looks[name] = asyncio.create_task(self._renew(name, folder, stamp))
            task.add_done_callback(lambda _: self._looks.pop(name))
        await asyncio.shield(task)

    async def _renew(self, name: str, folder: Path, stamp: Stamp) -> None:
        """Files in a root that are new, or have changed, are a new generation. Where another one is in memory they are
        read whole and tried first; if they cannot be used, that one stays."""
        former = self.registry.get(name)
        adapter, size = None, 0
        try:
            card, tokenizer = await asyncio.to_thread(self._card, folder)
            is_new = former is None or (former.card.hash, former.card.template) != (card.hash, card.template)
            if is_new and former is not None and former.adapter is not None:
                adapter, size = await self._read(name, card)
        except (InputError, OSError) as error:
            if self.registry.get(name) is former:
                self._remember(name, folder, stamp, error)
            return
        if self.registry.get(name) is not former:  # loaded or unloaded meanwhile
            return
        if former is not None and not is_new:
            former.stamp = stamp
            self.registry.broken.pop(name, None)
            return
        new = self.registry.put(name, card, tokenizer, stamp, former.pinned if former else False)
        if adapter is not None:
            with suppress(NoMemory):  # then its next request is told so
                room = self.registry.make_room(size)
                new.adapter, new.bytes, new.used = adapter, size, time.monotonic()
                self._let_go(room)
        self.engine.adapter_bytes = self.registry.bytes

    def _remember(self, name: str, folder: Path, stamp: Stamp, error: InputError | OSError) -> Broken:
        """That files in this state cannot be used; said once of a model that goes on with what it has in memory."""
        served, is_told = self.registry.get(name), name in self.registry.broken
        found = Broken(stamp, f"the model {name!r} cannot be used: {reason(error)}")
        if stamp_of(folder) != stamp:
            found = Broken(stamp, _REPLACED.format(name), Replaced)
        self.registry.broken[name] = found
        if served is not None and served.adapter is not None and not is_told:
            self._listener(
                Notice(
                    f"the files of {name!r} changed and cannot be used as they are now: {reason(error)}; generation "
                    f"{served.generation} goes on from memory until they can be",
                    warning=True,
                )
            )
        return found

    def models(self) -> list[ModelFacts]:
        """See `Service`. Folders in which no adapter can be read are left out."""
        if self.alone:
            return [self._facts_alone(*self.alone)]
        usable = filter(self.registry.usable, self.registry)
        return [self._base_facts(), *map(self._facts, usable)]

    def open(self, name: str) -> "LocalHandle":
        """See `Service`."""
        if self.alone:
            if name != self.alone[0]:
                raise (
                    self.registry.unknown(name)
                    if name != self.base.facts.name
                    else UnknownModel(f"this server has {self.alone[0]!r} alone, merged into its base")
                )
            return LocalHandle(self, self._facts_alone(*self.alone), self.base.tokenizer)
        if name == self.base.facts.name:
            return LocalHandle(self, self._base_facts(), self.base.tokenizer)
        served, broken = self.registry.get(name), self.registry.broken.get(name)
        if broken is not None and (served is None or not self.registry.usable(served)):
            raise broken.fault(broken.reason)
        if served is None:
            raise self.registry.unknown(name)
        return LocalHandle(self, self._facts(served), served.tokenizer, served)

    def _card(self, folder: Path) -> tuple[Card, Tokenizer]:
        card = Card.read(folder)
        return card, tokenizer_for(self.base, card)

    async def load(
        self, name: str, path: Path, pin: bool = False, replace: bool = False, expected_generation: int | None = None
    ) -> ModelFacts:
        """See `Service`. Nothing is shown before the adapter has changed some logits."""
        self.registry.check_name(name)
        folder = self.registry.inside(path)
        try:
            return await self.take_in(name, folder, pin, replace, expected_generation)
        except InputError as error:
            raise AdapterError(plain(error), pathless(error.remedy)) from error

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
        stamp = await asyncio.to_thread(stamp_of, folder)
        card, tokenizer = await asyncio.to_thread(self._card, folder)
        adapter, size = await self._read(name, card)
        if self.registry.get(name) is not begun:  # somebody else was faster
            self.registry.check(name, replace and expected is None, expected)
        room = self.registry.make_room(size)
        new = self.registry.put(name, card, tokenizer, stamp, pin)
        new.adapter, new.bytes, new.used = adapter, size, time.monotonic()
        self._let_go(room)
        return self._facts(new)

    async def _read(self, name: str, card: Card) -> tuple[Adapter, int]:
        """Read and checked beside the engine's work, tried between two of its steps; and its bytes."""
        adapter = await asyncio.to_thread(read_adapter, self.base, card, name)
        return adapter, await asyncio.wrap_future(self.engine.call(lambda: probe(self.base, adapter, name)))

    async def loaded(self, served: Served) -> Adapter:
        """The adapter of a generation, read where it is not in memory. Raises `ServiceFault`."""
        async with served.loading:
            if served.is_gone:
                raise UnknownModel(f"the model {served.name!r} was unloaded")
            if served.adapter is None:
                folder = served.folder
                stamp = await asyncio.to_thread(stamp_of, folder)
                try:  # where a link leads now: it may lead elsewhere before all is read
                    card = await asyncio.to_thread(Card.read, folder.resolve())
                    if card.hash != served.card.hash:
                        if self.registry.find(served.name) in (folder, folder.parent):  # asked again it is the new one
                            raise Replaced(_REPLACED.format(served.name))
                        raise UnknownModel(f"the files of the model {served.name!r} changed: load it again")
                    adapter, size = await self._read(served.name, card)
                except (InputError, OSError) as error:
                    if self.registry.get(served.name) is not served:
                        raise Replaced(_REPLACED.format(served.name)) from error
                    found = self._remember(served.name, folder, stamp, error)
                    raise found.fault(found.reason) from error
                room = self.registry.make_room(size)
                served.adapter, served.bytes = adapter, size
                self._let_go(room)
            return served.adapter

    async def unload(self, name: str, expected_generation: int | None = None, wait_s: float = 30.0) -> tuple[int, bool]:
        """See `Service`."""
        served = self.registry.get(name)
        if served is None:
            if name in (self.base.facts.name, self.alone and self.alone[0]):
                raise Conflict(f"{name!r} is what this server was started with", "adapter_in_use")
            raise self.registry.unknown(name)
        if served.pinned and not self.registry.holds(served.folder):
            raise Conflict(f"{name!r} is what this server was started with", "adapter_in_use")
        self.registry.check_generation(name, expected_generation)
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

    def _facts(self, served: Served) -> ModelFacts:
        facts, card = self.base.facts, served.card
        return ModelFacts(
            served.name, model_name(card.folder), facts.name,
            card.hash, facts.sha256, served.generation, served.created, facts.context_length, served.bytes,
            served.adapter.rank if served.adapter else card.rank, card.form, _task(card), pinned=served.pinned,
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
            lambda: sum(served.adapter is not None for served in registry),
        )  # fmt: skip
        gauge("afina_adapter_bytes", "Bytes of the adapters in memory.", lambda: registry.bytes)
        gauge(
            "afina_adapter_info", "Which weights a name means.",
            lambda: {(each.name, each.card.hash[:16], str(each.generation)): 1.0 for each in registry},
            ("model", "hash", "generation"),
        )  # fmt: skip


class LocalHandle:
    """See `Handle`."""

    def __init__(
        self, service: LocalService, facts: ModelFacts, tokenizer: Tokenizer, served: Served | None = None
    ) -> None:
        self.facts, self.tokenizer = facts, tokenizer
        self._service, self._served = service, served
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
        updates = None if served is None else (await service.loaded(served)).times(wanted.scale)
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
        service, engine = self._service, self._service.engine
        engine.check_queue(service._own)
        found: list[list[float]] = []
        service._own += 1
        try:
            for at in range(0, len(prompts), _AT_ONCE):  # between which others get their turn, or the client goes
                rows = prompts[at : at + _AT_ONCE]
                found += await asyncio.wrap_future(engine.call(partial(_probabilities, service.base, rows)))
        finally:
            service._own -= 1
        return [dict(zip(self.facts.labels, row, strict=True)) for row in found]


@torch.inference_mode()
def _probabilities(base: Base, rows: Sequence[list[int]]) -> list[list[float]]:
    device = next(base.model.module.parameters()).device
    ids = torch.tensor([token for row in rows for token in row], device=device)
    packed = unshared(ids, ids, Segments(tuple(accumulate(map(len, rows), initial=0))))
    found: list[list[float]] = base.model.label_logits(packed).float().softmax(-1).tolist()
    return found


def _task(card: Card) -> str:
    """What the adapter is for: a run's kind of data, else chat."""
    if card.facts.get("task") == "classify":
        return "classify"
    return str(card.facts.get("kind") or "chat")
