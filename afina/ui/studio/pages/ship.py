"""Shipping: a run in the forms of other programs, with what each takes and loses, and at an address of this machine."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.responses import FileResponse, Response

from afina.core.config import read_yaml
from afina.core.errors import InputError
from afina.core.text import shell_word
from afina.models.sources.catalogue import Entry, known_models
from afina.ui.studio.exported import Exported, exports_of
from afina.ui.studio.view import Call, Page, Route, go, quick, quoted
from afina.ui.studio.words import Refused
from afina.ui.studio.work import SERVING, Work

_FORMS = "runs forms"
_KEY = "serve.key"  # among the page's own records
_HUB = "hub:"
_SUGGESTED = ("gguf:Q8_0", "safetensors")  # the first of which that a run can take
_WITH_CARD = ("safetensors", "gguf:Q8_0", "gguf:Q4_K_M")  # what may go to the hub in the place of the adapter


@dataclass(frozen=True)
class Card:
    """A form as it is shown: how large it will be, what stands against it, the work on it, and what came of it."""

    form: str
    expected: int
    problems: tuple[str, ...]
    work: Work | None
    done: Exported | None

    @property
    def key(self) -> str:
        """Its name among the texts."""
        return self.form.replace(":", "_")


def _choose(call: Call) -> Response:
    """The runs that have a model to ship, and how many have none yet."""
    listed = quick("runs list", {"folder": str(call.workspace.runs)}).root
    runs = [each for each in listed if (Path(each["run"]) / "adapter").is_dir() and each["state"] != "running"]
    named = [(call.workspace.run_name(Path(each["run"])), each) for each in runs]
    return call.page("ship_choose.html", step="ship", runs=named)


def _show(call: Call) -> Response:
    name = call.path("name")
    path = call.workspace.run(name)
    look = _look(call, name, path)
    values: dict[str, Any] = {"step": "ship", "name": name, "look": look, "cards": [], "found": None}
    if look.state == "done":
        exports, expected = _exports(call, path), look.result["forms"]
        values |= {
            "suggested": next((form for form in _SUGGESTED if not expected[form]["problems"]), ""),
            "hub_name": "" if look.result["hub_base"] else _on_hub(path),
            "found": look.result, "exports": exports, "cards": list(_cards(call, name, look.result, exports)),
            "tried": _tried(call, name), "with_card": _WITH_CARD, **_serving(call, _served(call, name)),
            "alone": bool(expected["gguf-lora"]["problems"]),
        }  # fmt: skip
    return call.page("ship_run.html", **values)


def _on_hub(run: Path) -> str:
    """What the base of a run is probably called on the hub, where it did not come from there: a model of the catalogue
    of its family, kind and shapes."""
    known = known_models()
    base = known.get(str(read_yaml(run / "config.yaml").get("base")))
    alike = (each.hub_id for each in known.values() if base and each.hub_id and _nature(each) == _nature(base))
    return next(alike, "")


def _nature(entry: Entry) -> tuple[Any, ...]:
    return entry.family, entry.kind, entry.config


def _download(call: Call) -> Response:
    """A file of an export of the run. Raises `Refused` where there is none."""
    folder, name = call.text("folder"), call.text("file")
    for each in _exports(call, call.workspace.run(call.path("name"))):
        if each.folder.name == folder and name in each.record.files:
            return FileResponse(each.file(name), filename=Path(name).name, headers={"cache-control": "no-store"})
    raise Refused("no_file", name=name[:80])


def _look(call: Call, name: str, path: Path) -> Work:
    """What forms the run can take, by a job of its own: it imports much. Begun again where the run has changed."""
    found = call.queue.of(name, (_FORMS,))
    changed = max((file.stat().st_mtime for file in path.glob("adapter/*.json")), default=0.0)
    if found and found.asked_at >= changed:
        return found
    return call.queue.add(_FORMS, {"run": str(path)}, name)


def _look_again(call: Call) -> Response:
    """After what stood against it was mended: a base that is there again."""
    name = call.path("name")
    call.queue.add(_FORMS, {"run": str(call.workspace.run(name))}, name)
    return go(f"/ship/{quoted(name)}")


def _exports(call: Call, path: Path) -> list[Exported]:
    """Those in the workspace, and what `train --export` left in the run."""

    def folders() -> Iterator[Path]:
        yield path / "export"
        yield from (each for each in call.workspace.exports.iterdir() if each.is_dir())

    return exports_of(path / "adapter" / "adapter_model.safetensors", folders())


def _cards(call: Call, name: str, found: dict[str, Any], exports: list[Exported]) -> Iterator[Card]:
    begun = _works(call, name)
    for form, expected in found["forms"].items():
        work = next((each for each in begun if each.settings["to"] == [form]), None)
        done = next((each for each in exports if form in each.record.forms), None)
        shown = work if work and work.state != "done" else None
        yield Card(form, expected["bytes"], tuple(expected["problems"]), shown, done)


def _works(call: Call, name: str) -> list[Work]:
    """The exports of the run that were asked for, the newest first."""
    return [work for work in call.queue.all() if work.about == name and work.job == "export"]


def _tried(call: Call, name: str) -> Work | None:
    """The newest upload to the hub, tried or done."""
    return next((work for work in _works(call, name) if work.settings["to"][-1].startswith(_HUB)), None)


def _export(call: Call) -> Response:
    """Queues the export of one form. Raises `InputError` where that is not possible."""
    name, form = call.path("name"), call.text("form")
    path = call.workspace.run(name)
    look = _look(call, name, path)
    expected = look.result["forms"].get(form) if look.state == "done" else None
    if expected is None:
        raise Refused("no_form", form=form[:40])
    if expected["problems"]:
        raise InputError(expected["problems"], "choose another form")
    return go(f"/work/{_queue(call, name, path, [form]).id}")


def _queue(call: Call, name: str, path: Path, to: list[str], **more: Any) -> Work:
    """An export into a new folder, which is named after the run and the form; or the one that goes on already."""
    last = "hub" if to[-1].startswith(_HUB) else to[-1].replace(":", "-")
    taken = {Path(work.settings["out"]).name for work in call.queue.all() if work.job == "export"}
    out = call.workspace.new_folder(call.workspace.exports, f"{name.replace('/', '-')}-{last}", taken)
    return _once(call, name, {"run": str(path), "to": to, "out": str(out)} | more)


def _once(call: Call, name: str, settings: dict[str, Any]) -> Work:
    """An export, or the one that goes on already: into the same forms, tried or done."""

    def asked(given: dict[str, Any]) -> tuple[Any, ...]:
        return given["to"], given.get("dry_run", False)

    going = (work for work in _works(call, name) if not work.ended and asked(work.settings) == asked(settings))
    return next(going, None) or call.queue.add("export", settings, name)


def _publish(call: Call) -> Response:
    """Lists what would go to the hub; uploads what was listed before. Raises `InputError`."""
    name = call.path("name")
    path = call.workspace.run(name)
    if call.text("upload") == "yes":
        tried = _tried(call, name)
        if tried is None or tried.id != call.text("tried") or tried.state != "done":
            raise Refused("not_listed")
        return go(f"/work/{_once(call, name, tried.settings | {'dry_run': False, 'overwrite': True}).id}")
    given = call.text("with")
    if given and given not in _WITH_CARD:
        raise Refused("no_form", form=given[:40])
    more: dict[str, Any] = {"dry_run": True, "public": call.text("public") == "yes"}
    if base := call.text("base_model"):
        more["base_model"] = base
    to = [*([given] if given else []), f"{_HUB}{call.text('repository')}"]
    return go(f"/work/{_queue(call, name, path, to, **more).id}")


def _serve(call: Call) -> Response:
    """Lets the run answer at an address, where it does not yet."""
    name = call.path("name")
    path = call.workspace.run(name)
    found = _served(call, name)
    if found is None or found.ended:
        key = str(call.workspace.key_file(_KEY))
        settings: dict[str, Any] = {"runs": [str(path)], "port": call.text("port") or "0", "key_file": key}
        if call.text("alone") == "yes":
            settings["merge"] = _model(name)
        call.queue.add(SERVING, settings, name)
    return go(f"/ship/{quoted(name)}#serve")


def _served(call: Call, name: str) -> Work | None:
    return call.queue.of(name, (SERVING,))


def _model(name: str) -> str:
    """What the server calls the run: by its folder."""
    return name.rpartition("/")[2]


def _live(call: Call) -> Response:
    work = call.queue[call.path("id")]
    if work.job != SERVING:
        raise Refused("no_work", id=work.id)
    return call.page("ship_serve.html", name=work.about, **_serving(call, work))


def _serving(call: Call, work: Work | None) -> dict[str, Any]:
    """What is shown of a server: its address once it listens, its key, and lines that ask it."""
    if work is None or work.state != "running" or not (address := work.address):
        return {"served": work, "address": ""}
    key = call.workspace.key_file(_KEY).read_text(encoding="utf-8").strip()
    look = call.queue.of(work.about, (_FORMS,))
    task = look.result["task"] if look and look.state == "done" else "causal"
    curl, python = _lines(address, key, _model(work.about), task, call.words("ship.question"))
    return {"served": work, "address": address, "key": key, "model": _model(work.about), "curl": curl, "python": python}


def _lines(address: str, key: str, model: str, task: str, question: str) -> tuple[str, str]:
    """What one types to ask the server: with curl, and in Python without any package."""
    asked: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": question}]}
    route, answer = "/v1/chat/completions", '["choices"][0]["message"]["content"]'
    if task == "classify":
        asked, route, answer = {"model": model, "input": question}, "/v1/classify", '["data"][0]["label"]'
    body = json.dumps(asked, ensure_ascii=False)
    curl = " \\\n  ".join(
        [
            f"curl {address}{route}", f"-H {shell_word(f'authorization: Bearer {key}')}",
            "-H 'content-type: application/json'", f"-d {shell_word(body)}",
        ]
    )  # fmt: skip
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    python = "\n".join(
        [
            "import json", "from urllib.request import Request, urlopen", "",
            f"asked = {asked!r}", f"headers = {headers!r}",
            f'request = Request("{address}{route}", json.dumps(asked).encode(), headers)',
            "with urlopen(request) as answer:", f"    print(json.load(answer){answer})",
        ]
    )  # fmt: skip
    return curl, python


PAGE = Page(
    "ship",
    (
        Route("GET", "/ship", _choose),
        Route("GET", "/ship/{name:path}", _show),
        Route("GET", "/download/{name:path}", _download),
        Route("POST", "/forms/{name:path}", _look_again),
        Route("POST", "/export/{name:path}", _export),
        Route("POST", "/publish/{name:path}", _publish),
        Route("POST", "/serve/{name:path}", _serve),
        Route("GET", "/serving/{id}/live", _live),
    ),
)
