"""The data: files brought and chosen, previewed, what is asked and answered, what a check finds, rows as seen."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, get_args

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response

from afina.core.config import build
from afina.core.device import cache_folder
from afina.core.errors import AfinaError, NoTable, writing
from afina.core.process.temporary import replacing
from afina.data.layouts import Kind
from afina.jobs import JOBS
from afina.models.sources.source import is_local
from afina.serving.http.errors import JsonResponse
from afina.ui.studio.findings import findings, on_page, refused, sentence
from afina.ui.studio.pages._preparing import catalogue
from afina.ui.studio.pages.runs import entries
from afina.ui.studio.view import Call, Page, Route, go, quick, quoted
from afina.ui.studio.words import Refused, recorded
from afina.ui.studio.work import Work
from afina.ui.studio.workspace import holds_examples

_MOST_BYTES = 16_000_000_000  # of a file that is brought
_SPARED = 1_000_000_000  # bytes of the disk that stay free
_LOOK = 1 << 26  # bytes after which that is looked at again
_ASKED = ("prompt", "completion", "system", "map", "kind", "encoding", "too_long")  # settings that the page can set
_LATER = ("kind", "too_long")  # of them those that a preview has no use for
_TOO_LONG = ("drop", "cut", "error")
_SHOWN_ROWS = 8


def _list(call: Call) -> Response:
    files = call.workspace.data_files()
    return call.page("data_list.html", step="data", files=[(path, *_state(call, path)) for path in files])


def _state(call: Call, path: Path) -> tuple[str, AfinaError | None]:
    """How far a file is, as the end of a key of texts; where it was refused, why."""
    if found := call.workspace.refusal(path):
        return "refused", refused(call.words, found, path)
    check = call.queue.of(path.name, ("data check",))
    if check is None or check.asked_at < path.stat().st_ctime:
        return "unseen", None
    if check.state == "failed":
        return "refused", refused(call.words, check.error, path)
    if check.state == "done":
        return "ready" if check.result["ready"] else "not_ready", None
    return "unseen" if check.ended else "checking", None


async def _upload(call: Call) -> Response:
    """Writes what is sent to a file of the workspace, as it comes."""
    try:
        with call.workspace.new_data_file(call.path("name")) as path:
            if not holds_examples(path):
                raise Refused("no_examples", name=path.name)
            await _store(path, call.request.stream())
    except AfinaError as error:
        return PlainTextResponse(call.told(error), 400)
    except ClientDisconnect:
        return PlainTextResponse("", 499)
    return JsonResponse({"page": f"/data/{quoted(path.name)}"})


async def _store(path: Path, parts: AsyncIterator[bytes]) -> None:
    count = 0
    with writing(path), replacing(path) as part, part.open("wb") as file:
        async for piece in parts:
            if count % _LOOK < len(piece) and shutil.disk_usage(path.parent).free < _SPARED:
                raise Refused("disk_full")
            count += len(piece)
            if count > _MOST_BYTES:
                raise Refused("file_large", name=path.name, gigabytes=f"{_MOST_BYTES / 1e9:.0f}")
            await run_in_threadpool(file.write, piece)
        if not count:
            raise Refused("file_empty", name=path.name)
        await run_in_threadpool(_to_disk, file)


def _to_disk(file: BinaryIO) -> None:
    """Takes long for a large one: done here, closing it does not keep other requests waiting."""
    file.flush()
    os.fsync(file.fileno())


def _show(call: Call) -> Response:
    return _page(call, call.workspace.reading(call.path("name")))


def _page(call: Call, reading: dict[str, Any], status: int = 200) -> Response:
    """The file's first rows and mapping at once, read as `reading` says; what is found in all rows is looked for
    beside."""
    name = call.path("name")
    path = call.workspace.data_file(name)
    values: dict[str, Any] = {"name": name, "step": "data", "reading": reading, "folder": f"{path.parent}{os.sep}"}
    kept = reading == call.workspace.reading(name)
    try:
        settings = {"rows": _SHOWN_ROWS, "data": {"path": str(path)} | _readable(reading)}
        preview = quick("data preview", settings)
    except AfinaError as error:
        if kept:
            call.workspace.keep_refusal(path, recorded(error))
        return call.page(
            "data_file.html", status, problem=refused(call.words, recorded(error), path),
            is_text=not isinstance(error, NoTable), check=None, row=None, **values,
        )  # fmt: skip
    call.workspace.keep_refusal(path, None)
    mapping = preview.mapping | reading
    check = _check(call, name, path, mapping)
    found = check.result if check.state == "done" else None

    def told(which: str) -> list[str]:
        return [on_page(call.words, each, path) for each in found[which]] if found else []

    asks = mapping.get("prompt") and mapping.get("completion")
    row = _row(call, path, mapping)
    return call.page(
        "data_file.html", problem=None, preview=preview, mapping=mapping, check=check, tasks=get_args(Kind),
        sentence=sentence(call.words, mapping["prompt"], mapping["completion"]) if asks else None,
        found=found, findings=findings(call.words, found, path) if found else [],
        reasons=told("reasons"), notes=told("notes"),
        failed=refused(call.words, check.error, path) if check.state == "failed" else None,
        row=refused(call.words, recorded(row), path) if isinstance(row, AfinaError) else row, **values,
    )  # fmt: skip


def _readable(settings: dict[str, Any]) -> dict[str, Any]:
    """What decides how rows are read, and neither how answers are scored nor which rows are left out."""
    return {name: value for name, value in settings.items() if name not in _LATER}


def _check(call: Call, name: str, path: Path, mapping: dict[str, Any]) -> Work:
    """The newest check of the file as it is and is read; begun where there is none, in the place of another."""
    data = {"path": str(path)} | {key: mapping[key] for key in _ASKED if mapping.get(key)}
    found = call.queue.of(name, ("data check",))
    changed = path.stat().st_ctime  # whichever time a copy brought along as that of its content
    if found and found.settings.get("data") == data and found.asked_at >= changed:
        return found
    if found and not found.ended:
        call.queue.stop(found)
    return call.queue.add("data check", {"data": data}, name)


def _row(call: Call, path: Path, mapping: dict[str, Any]) -> Any:
    """The row that is asked for by its number or place, as the model sees it; the error that says why there is none;
    or an empty text where no base is on this disk by whose tokens it could be shown: none is fetched for it."""
    number, place = call.text("row"), call.text("at")
    if not {"row", "at"} & call.form.keys():
        return None
    base = next((name for name in catalogue() if is_local(name, cache_folder())), "")
    if not base:
        return base
    wanted = int(number) if number.isdecimal() and len(number) < 10 else 1
    asked = {"at": f"{path.parent}{os.sep}{place}"} if place else {"row": max(1, wanted)}
    try:
        return quick("data show", asked | {"base": base, "data": {"path": str(path)} | _readable(mapping)})
    except AfinaError as error:
        return error


def _read_so(call: Call) -> Response:
    """Keeps how the file is to be read, once it can be; an empty form forgets it."""
    name = call.path("name")
    path = call.workspace.data_file(name)
    given = {key: call.form[key] for key in _ASKED if call.text(key)}
    try:
        build(JOBS["data check"].load().settings, {"data": {"path": str(path)} | given})
        quick("data preview", {"rows": 1, "data": {"path": str(path)} | _readable(given)})
    except AfinaError:
        return _page(call, given, 400)
    call.workspace.keep_reading(name, given)
    return go(f"/data/{quoted(name)}")


def _too_long(call: Call) -> Response:
    """Keeps what is to be done with rows that are too long, looks at all rows anew, and goes back to where it was
    asked: the file's page, or the step `to`."""
    name, chosen = call.path("name"), call.text("too_long")
    path, reading = call.workspace.data_file(name), call.workspace.reading(name)
    if chosen in _TOO_LONG:
        reading |= {"too_long": chosen}
        call.workspace.keep_reading(name, reading)
        preview = quick("data preview", {"rows": 1, "data": {"path": str(path)} | _readable(reading)})
        _check(call, name, path, preview.mapping | reading)
    to = call.text("to")
    return go(f"/{to}", data=name, base=call.text("base")) if to in ("base", "train") else go(f"/data/{quoted(name)}")


def _check_again(call: Call) -> Response:
    """Begins the check anew, where it was killed or stopped."""
    name = call.workspace.data_file(call.path("name")).name
    found = call.queue.of(name, ("data check",))
    if found and found.ended:
        call.queue.add("data check", found.settings, name)
    return go(f"/data/{quoted(name)}")


def _delete(call: Call) -> Response:
    """Takes the file out of the workspace. Raises `Refused` where it was not agreed to, or where a run has use for
    it."""
    path = call.workspace.data_file(call.path("name"))
    if call.text("sure") != "yes":
        raise Refused("not_sure", name=path.name)
    _refuse_used(call, path)
    check = call.queue.of(path.name, ("data check",))
    if check and not check.ended:
        call.queue.stop(check)
    with writing(path):
        path.unlink()
    with suppress(OSError):
        call.workspace.keep_reading(path.name, {})
        call.workspace.keep_refusal(path, None)
    return go("/data")


def _refuse_used(call: Call, path: Path) -> None:
    """Raises `Refused` where work that is done or waits reads the file, or a run cannot be resumed without it."""
    runs = {run["name"]: run for run in entries(call) if run.get("data") == str(path)}
    for work in call.queue.all():
        if work.heavy and not work.ended and (work.about in runs or _read_by(work) == str(path)):
            job = call.words(f"work.job_{work.job.split()[0]}")
            raise Refused("in_use", name=path.name, job=f"{job} · {work.about}")
    for name, run in runs.items():
        if run["state"] == "running" or "resume" in run:
            raise Refused("needed", name=path.name, run=name)


def _read_by(work: Work) -> Any:
    """The path of the file that a piece of work was begun with."""
    run = work.settings.get("run")
    data = (run if isinstance(run, dict) else work.settings).get("data")
    return data.get("path") if isinstance(data, dict) else data


PAGE = Page(
    "data",
    (
        Route("GET", "/data", _list),
        Route("POST", "/upload/{name:path}", _upload),
        Route("GET", "/data/{name}", _show),
        Route("POST", "/data/{name}/reading", _read_so),
        Route("POST", "/data/{name}/too-long", _too_long),
        Route("POST", "/data/{name}/check", _check_again),
        Route("POST", "/data/{name}/delete", _delete),
    ),
)
