"""A piece of work while it is done: how far it is, what happens, its end; and the stream that tells of each event."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from starlette.responses import Response, StreamingResponse

from afina.core.errors import InputError
from afina.core.events import Answers, Done, Event, HeldOut, Notice, Progress, Step, read_events
from afina.ui.studio import scores
from afina.ui.studio.charts import Curves
from afina.ui.studio.view import Call, Page, Route, go, quoted
from afina.ui.studio.words import Words
from afina.ui.studio.work import ENDED, Work, whole_lines

_LOOK, _PING = 0.15, 10.0  # seconds between two looks at the file of events, and of silence before a sign of life
_RETRY = 1000  # milliseconds after which a browser asks again where the server is away
_NOTICES = 12
_LOOKS_SHOWN = 6  # of the model's answers while it learns: the first, and the last
_HERE = re.compile(r"/(?![/\\])[!-~]*")  # a path of this server
# What a job calls the work that it is at begins so; the others have no words here.
_STAGES = {
    "answers of the base": "answers_base", "answers of the adapted": "answers_adapted", "answers": "answers",
    "loading the saved": "saved", "losses of": "losses",
    "rows prepared": "prepared", "rows looked at": "looked_at", "rows compared": "compared",
    "loading the tokenizer": "tokenizer", "reading and trying": "adapters", "reading ": "reading", "search": "search",
}  # fmt: skip


def _show(call: Call) -> Response:
    work = call.queue[call.path("id")]
    return call.page("work.html", work=work, step=_step(work), **_live(call, work))


def _fragment(call: Call) -> Response:
    work = call.queue[call.path("id")]
    return call.page("work_live.html", work=work, **_live(call, work))


def _step(work: Work) -> str:
    return "ship" if work.job in ("export", "serve") else "judge" if work.job == "eval" else "train"


def _live(call: Call, work: Work) -> dict[str, Any]:
    """What the page shows of how far it is."""
    events = work.events()
    progress = _progress(events)
    whole = _whole(call, work, events)
    steps = [e for e in whole if isinstance(e, Step)]
    curves = Curves.of(whole)
    return {
        "state": work.state,
        "curves": curves,
        "measure": scores.metric(call.words, curves.measure),
        "answers": looks(whole),
        "last": steps[-1] if steps else None,
        "learns": _learns(events),
        "progress": next((each for each in progress if each.total), None),
        "stages": [(_stage(call.words, each.stage), each) for each in progress],
        "notices": [e.text for e in events if isinstance(e, Notice) and not e.warning][-_NOTICES:],
        "warnings": [e.text for e in events if isinstance(e, Notice) and e.warning][-_NOTICES:],
        "outcome": outcome(call, work),
    }


def _whole(call: Call, work: Work, events: list[Event]) -> list[Event]:
    """What happened in a training that was resumed, from its beginning on: before, as the run itself recorded it."""
    path = call.workspace.runs / work.about / "metrics.jsonl"
    if work.job != "train --resume" or not path.is_file():
        return events
    first = next((e.step for e in events if isinstance(e, Step)), None)
    return [*_past(path, first), *events] if first else events


@lru_cache(maxsize=8)
def _past(path: Path, first: int) -> tuple[Event, ...]:
    """What the run recorded before its step `first`, which no longer changes."""
    try:
        recorded = [e for e in read_events(path) if isinstance(e, Step | HeldOut | Answers)]
    except (InputError, OSError):
        return ()
    return tuple(e for e in recorded if e.step < first)


def looks(events: Sequence[Event]) -> list[Answers]:
    """What the model answered after its looks at the held-out rows: the first time, and the last times."""
    found = [event for event in events if isinstance(event, Answers)]
    return [*found[:1], *found[1:][1 - _LOOKS_SHOWN :]]


def _learns(events: Sequence[Event]) -> bool:
    """Whether steps are still to come: not before the first, and not while what was learned is saved and judged."""
    told = Progress | Step | Done
    newest = next((each for each in reversed(events) if isinstance(each, told)), None)
    return isinstance(newest, Step) and newest.step < newest.total


def _progress(events: Sequence[Event]) -> list[Progress]:
    """The newest that work beside training told of how far it is; what it counts without an end stands beside what it
    counts with one."""
    newest = next((each for each in reversed(events) if isinstance(each, Progress | Step)), None)
    if not isinstance(newest, Progress):
        return []
    other = (each for each in reversed(events) if isinstance(each, Progress) and bool(each.total) != bool(newest.total))
    beside = next(other, None) if newest.done else None
    return [newest, beside] if beside and beside.done else [newest]


def _stage(words: Words, told: str) -> str:
    return words(f"work.stage_{next((key for begin, key in _STAGES.items() if told.startswith(begin)), 'other')}")


def outcome(call: Call, work: Work) -> str:
    """The address of the page that shows what came of it, or nothing."""
    if work.state not in ("done", "stopped"):
        return ""
    if work.job == "export":
        return f"/ship/{quoted(work.about)}"
    if work.job == "data check":
        return f"/data/{quoted(work.about)}"
    is_run = work.about and (call.workspace.runs / work.about).is_dir()
    return f"/runs/{quoted(work.about)}" if is_run else ""


def _stop(call: Call) -> Response:
    work = call.queue[call.path("id")]
    call.queue.stop(work)
    back = call.text("back")
    return go(back if _HERE.fullmatch(back) else f"/work/{work.id}")


def _busy(call: Call) -> Response:
    """What goes on, for the head of the page whose address the query says."""
    return call.page("busy.html", at=call.text("at"))


async def _events(call: Call) -> Response:
    work = call.queue[call.path("id")]
    given = call.request.headers.get("last-event-id", "0")
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    start = int(given) if given.isdecimal() and len(given) < 18 else 0
    return StreamingResponse(_frames(call, work, start), media_type="text/event-stream", headers=headers)


async def _frames(call: Call, work: Work, at: int) -> AsyncIterator[bytes]:
    """The newest event whenever there are new ones, numbered by where the file then ends, and each state."""
    path, state, silent = work.folder / "events.jsonl", "", 0.0
    yield b"retry: %d\n\n" % _RETRY
    while not await call.request.is_disconnected():
        now = await asyncio.to_thread(lambda: work.state)
        lines, at = await asyncio.to_thread(whole_lines, path, at)
        if lines:
            yield b"id: %d\nevent: news\ndata: %b\n\n" % (at, lines[-1])
        if now != state:
            yield b"event: state\ndata: %b\n\n" % now.encode()
            state = now
        if state in ENDED:  # it was so before the lines were read: these were all
            return
        silent = 0.0 if lines else silent + _LOOK
        if silent >= _PING:
            yield b": ping\n\n"
            silent = 0.0
        await asyncio.sleep(_LOOK)


PAGE = Page(
    "work",
    (
        Route("GET", "/busy", _busy),
        Route("GET", "/work/{id}", _show),
        Route("GET", "/work/{id}/live", _fragment),
        Route("GET", "/work/{id}/events", _events),
        Route("POST", "/work/{id}/stop", _stop),
    ),
)
