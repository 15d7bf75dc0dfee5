"""`serve`: answer at an address, in the API that OpenAI's clients speak, with adapters by name."""

import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator

from afina.core.config import Result, Settings, Words, setting
from afina.core.device import keep_freed_memory, precision_of
from afina.core.errors import AdapterError, SettingsError, counted
from afina.core.events import Listener, Notice, Progress, ignore
from afina.core.job import Job
from afina.core.text import command_line
from afina.lora.merging import merge_in_place
from afina.models.footprint import free_bytes
from afina.models.load import Base, load_base
from afina.runs.facts import adapter_folder, is_merged, model_name
from afina.runs.opening import open_base, open_run
from afina.serving.adapters import Card, check_trained_on
from afina.serving.engine import Limits
from afina.serving.local import LocalService
from afina.serving.probe import overhead
from afina.serving.service import NoMemory

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SWITCH = 0.0005  # seconds after which one thread gives way: the engine's waits for the other's less


def _bytes(value: Any) -> Any:
    """'4GB' → 4,000,000,000."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
    if not found or found[2].upper() not in _UNITS:
        raise ValueError(f"{value!r} is no size such as 4GB or 512MB")
    return int(float(found[1]) * _UNITS[found[2].upper()])


class ServeSettings(Settings):
    runs: tuple[Path, ...] = setting((), positional="RUN")
    """Folders that `afina train` wrote, or adapters' folders; each is a model by its folder's name."""
    base: str | None = None
    """The base, where it is not where it was in training, or where no RUN is given."""
    adapters: Path | None = setting(None, metavar="DIR")
    """Folder of adapters: each in it is a model, read when it is first asked for; others can be loaded from it."""
    host: str = setting("127.0.0.1", metavar="ADDRESS")
    """Where to listen; any but this machine's own needs --key-file."""
    port: int = setting(8080, ge=0, le=65_535)
    """The port; 0 takes a free one."""
    key_file: Path | None = setting(None, "--key-file", metavar="FILE")
    """Keys of which each request needs one, one a line."""
    admin_key_file: Path | None = setting(None, "--admin-key-file", metavar="FILE")
    """Keys that may load and unload adapters too; without one nobody may."""
    allowed_hosts: Words = setting((), "--allowed-hosts", metavar="NAMES")
    """Names by which the server may be called beside this machine's own, with commas between."""
    max_batch: int = setting(32, "--max-batch", ge=1, le=1024)
    """Answers that are written at one time."""
    max_queue: int = setting(64, "--max-queue", ge=0)
    """Requests that may wait beside them; more are refused with 429."""
    memory: Annotated[int, BeforeValidator(_bytes)] = setting(4_000_000_000, metavar="SIZE", ge=1_000_000)
    """Bytes for adapters, keys and values, beside the base, such as 4GB; half of it at most for adapters."""
    merge: str | None = setting(None, metavar="NAME")
    """Serve this model alone, merged into its base: faster, and the only way for adapters that are more than A and
    B."""
    deterministic: bool = False
    """One answer at a time, so that each pass has the shape that it has alone; slower under load."""
    lenient: bool = False
    """Leave out fields of a request that are not known, and name them in the answer; else they are refused."""
    log_requests: bool = setting(False, "--log-requests")
    """A line on standard error for each request."""
    device: str | None = None
    """cpu, cuda (of several cards cuda:0, cuda:1 …), mps; by default the best that is there."""
    cache_dir: Path | None = setting(None, metavar="DIR")
    """Where downloaded models are kept."""

    @model_validator(mode="after")
    def _has_a_model(self) -> "ServeSettings":
        if not self.runs and not self.base:
            raise ValueError("there is nothing to serve: give a RUN, or --base BASE")
        return self


class ServeResult(Result):
    models: tuple[str, ...]
    """The models that were served at the end."""
    requests: int
    """How many were answered."""
    generated_tokens: int


def serve(settings: ServeSettings, listener: Listener = ignore) -> ServeResult:
    """Serves until it is told to end (Ctrl-C, SIGTERM); then what runs has 30 s to finish.

    Raises `SettingsError` for another address without a key or one that is taken, `AdapterError` for what cannot be
    served, and `BaseModelError`.
    """
    from afina.serving.http import Access, bind, make_app, run

    access = Access.of(settings.host, settings.key_file, settings.admin_key_file, settings.allowed_hosts)
    keep_freed_memory()
    with bind(settings.host, settings.port) as held:
        service = prepared(settings, listener)
        sys.setswitchinterval(_SWITCH)
        app = make_app(service, access, lenient=settings.lenient)
        asyncio.run(service.look())
        listener(Notice(f"models: {', '.join(facts.id for facts in service.models())}; Ctrl-C ends it"))
        try:
            run(app, held, listener=listener, log_requests=settings.log_requests)
        finally:
            service.close()
    return ServeResult(
        models=tuple(facts.id for facts in service.models()),
        requests=int(service.metrics().requests.total),
        generated_tokens=int(service.metrics().generated_tokens.total),
    )


def prepared(settings: ServeSettings, listener: Listener = ignore) -> LocalService:
    """The service that the settings describe: base loaded, adapters read, tried and measured. It takes requests."""
    runs = _named(settings.runs)
    if settings.adapters is not None and not settings.adapters.is_dir():
        raise SettingsError(f"--adapters {settings.adapters}: no such folder", "give the folder that holds adapters")
    if settings.merge is not None and settings.merge not in runs:
        raise SettingsError(
            f"--merge {settings.merge!r} is none of the models {', '.join(runs) or '(there is none)'}",
            "give the RUN that is to be merged, and its name",
        )
    limits = Limits(settings.max_batch, settings.max_queue, settings.memory, settings.deterministic)
    listener(Notice("loading the base"))
    base, alone = _base(settings, runs, listener)
    listener(Notice(f"{base.facts.name}: {base.engine}; computes in {precision_of(base.dtype)} ({base.dtype_reason})"))
    if (free := free_bytes(next(base.model.module.parameters()).device)) < limits.memory:
        listener(
            Notice(f"--memory {limits.memory / 1e9:.1f} GB, but {free / 1e9:.1f} GB of memory are free", warning=True)
        )
    roots = (settings.adapters,) if settings.adapters else ()
    service = LocalService(base, limits, roots, alone, listener)
    service.start()
    if alone is None and runs and not is_merged(next(iter(runs.values()))):
        try:
            asyncio.run(_take_in(service, runs, listener))
        except BaseException:
            service.engine.close()
            raise
        _tell_cost(service, runs, listener)
    return service


async def _take_in(service: LocalService, runs: dict[str, Path], listener: Listener) -> None:
    for i, (name, run) in enumerate(runs.items()):
        service.registry.check_name(name)
        try:
            facts = await service.take_in(name, run, pin=True)
        except NoMemory as error:
            raise AdapterError(f"{name!r}: {error}", "give more --memory, or serve fewer") from error
        listener(Progress("reading and trying adapters", i + 1, len(runs)))
        listener(Notice(f"{name}: rank {facts.rank}, {facts.bytes / 1e6:.1f} MB, {facts.hash[:12]}…"))


def _tell_cost(service: LocalService, runs: dict[str, Path], listener: Listener) -> None:
    name, run = next(iter(runs.items()))
    served = service.registry.get(name)
    adapter = served.adapter if served else None
    if adapter is None:
        return
    rows = min(8, service.engine.limits.rows)
    plain, adapted = service.engine.call(lambda: overhead(service.base, adapter, rows)).result()
    times = f"{1000 * plain:.1f} ms, {1000 * adapted:.1f} ms with an adapter ({adapted / plain - 1:+.0%})"
    merged = f"; alone, `{command_line('serve', run, '--merge', name)}` saves that" if len(runs) == 1 else ""
    listener(Notice(f"a token of each of {counted(rows, 'answer')} takes {times}{merged}"))


def _named(runs: Sequence[Path]) -> dict[str, Path]:
    """The runs by the names of their folders. Raises `AdapterError`, also where two have one name."""
    found: dict[str, Path] = {}
    for run in runs:
        folder = run if is_merged(run) else adapter_folder(run)
        name = model_name(folder.resolve())
        if name in found:
            raise AdapterError(f"{found[name]} and {run} would both be the model {name!r}", "rename one of the folders")
        found[name] = run
    return found


def _base(settings: ServeSettings, runs: dict[str, Path], listener: Listener) -> tuple[Base, tuple[str, Card] | None]:
    """The base of what is served; and the adapter that is in it already, where one is."""
    device, cache = settings.device, settings.cache_dir
    if not runs:
        return load_base(str(settings.base), device=device, cache_dir=cache), None
    name, run = (settings.merge, runs[settings.merge]) if settings.merge else next(iter(runs.items()))
    if is_merged(run):
        if len(runs) > 1 or settings.base or settings.merge:
            raise AdapterError(f"{run} is a merged model, which is its own base", "serve it alone, without --base")
        return open_run(run, device=device, cache_dir=cache, listener=listener).base, None
    folder = adapter_folder(run)
    card = Card.read(folder)
    task = card.facts.get("task", "causal")
    if settings.merge or task == "classify":
        if len(runs) > 1:
            raise AdapterError(f"{name!r} can be served alone only", "start one server for each such model")
        adapted = open_run(run, device=device, cache_dir=cache, base=settings.base, listener=listener)
        if settings.merge and adapted.base.task.continues_text:
            listener(Notice(f"merging {name} into its base"))
            merge_in_place(adapted.base.model.module)
        return adapted.base, (name, card)
    if task != "causal":
        raise AdapterError(
            f"{name!r} is an encoder-decoder, which no server of Afina's answers with",
            f"`{command_line('generate', run)}` does",
        )
    base, _ = open_base(folder, device=device, cache_dir=cache, base=settings.base, listener=listener)
    check_trained_on(base, card)
    return base, None


JOB = Job.of(serve)
