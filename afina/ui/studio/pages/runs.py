"""The runs of the workspace: listed with their state, gone on with, compared two by two, deleted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.responses import Response

from afina.core.errors import writing
from afina.core.files import read_json
from afina.core.process.locks import in_use
from afina.core.process.temporary import remove_at_once
from afina.ui.studio import scores
from afina.ui.studio.view import Call, Page, Route, go, quick
from afina.ui.studio.words import Refused
from afina.ui.studio.work import Work

_WRITERS = ("train", "train --resume", "compare", "tune", "choose")
_MADE = ("config.yaml", "search.yaml")  # one of which is in the folder of each run and search


def _list(call: Call) -> Response:
    return call.page("runs_list.html", step="runs", entries=entries(call))


def entries(call: Call) -> list[dict[str, Any]]:
    """The runs and searches, the newest first, as `runs list` gives them: with `name`, the address of the `work` that
    is being done on it, and where it was evaluated the `scores` of base and adapted model in words."""
    found = []
    busy = {each.about: each.id for each in call.queue.all() if not each.ended and each.job in _WRITERS}
    for entry in quick("runs list", {"folder": call.workspace.runs}).root:
        name = call.workspace.run_name(Path(entry["run"]))
        more: dict[str, Any] = {"name": name, "file": Path(entry.get("data", "")).name, "work": busy.get(name, "")}
        if "metric" in entry:
            metric = entry["metric"]
            told = [scores.score(call.words, metric, entry[f"{which}_score"]) for which in ("base", "adapted")]
            more |= {"scores": told, "measured": scores.metric(call.words, metric)}
            more |= {"verdict": scores.state(entry["difference"]), "tone": scores.tone(entry["difference"])}
            if more["verdict"] == "better" and entry["over_trivial"] != "better":
                more |= {"verdict": "doubtful", "tone": ""}
        found.append(entry | more)
    return found


def at_work(call: Call, name: str, jobs: tuple[str, ...] = _WRITERS) -> Work | None:
    """The work on a run that is being done, or waits."""
    return next((each for each in call.queue.all() if not each.ended and each.about == name and each.job in jobs), None)


def _resume(call: Call) -> Response:
    """Goes on with a training that was cut off, or with a search, as it was begun; begins again one that failed before
    it had a folder. Raises `Refused` where the page did not begin that search."""
    name = call.path("name")
    if work := at_work(call, name):
        return go(f"/work/{work.id}")
    before = call.queue.of(name, _WRITERS)
    if before and not (call.workspace.runs / name).is_dir():
        return go(f"/work/{call.queue.add(before.job, before.settings, name).id}")
    path = call.workspace.run(name)
    if not (path / "search.yaml").is_file():
        return go(f"/work/{call.queue.add('train --resume', {'run': path}, name).id}")
    if before is None:
        entry = next(each for each in quick("runs list", {"folder": path}).root if each["run"] == str(path))
        raise Refused("begun_elsewhere", name=name, command=entry.get("resume", ""))
    return go(f"/work/{call.queue.add(before.job, before.settings, name).id}")


def _differences(call: Call) -> Response:
    """Two runs side by side; the fields of the address say which."""
    first, second = call.text("first"), call.text("second")
    if first == second:
        raise Refused("same_run")
    found = quick("runs diff", {"first": call.workspace.run(first), "second": call.workspace.run(second)})
    told = [
        (scores.metric(call.words, name), *(scores.score(call.words, name, each) for each in pair))
        for name, pair in found.scores.items()
    ]
    verdict = tone = ""
    if found.difference:
        main = read_json(call.workspace.run(first) / "evaluation.json")["main_metric"]
        verdict = scores.sentence(call.words, "runs.diff", main, found.difference, first=first, second=second)
        tone = scores.tone(found.difference)
    return call.page(
        "runs_diff.html", step="runs", first=first, second=second, found=found, verdict=verdict, tone=tone, scores=told
    )


def _delete(call: Call) -> Response:
    """Takes a run, or a search with the runs in it, out of the workspace. Raises `Refused` where it was not agreed
    to, or where somebody works in it."""
    name = call.path("name")
    path = call.workspace.run(name)
    if call.text("sure") != "yes":
        raise Refused("not_sure", name=name)
    if any(in_use(each) for each in _folders(call.workspace.runs, path)):
        raise Refused("being_written", name=name)
    if work := next((each for each in call.queue.all() if not each.ended and _is_in(each.about, name)), None):
        raise Refused("in_use", name=name, job=call.words(f"work.job_{work.job.split()[0]}"))
    with writing(path):
        remove_at_once(path)
    return go("/runs")


def _folders(root: Path, path: Path) -> Iterator[Path]:
    """Those whose lock says that a run or a search is being written: itself, what it is in, and what is in it."""
    yield path
    yield from (above for above in path.parents if above != root and above.is_relative_to(root))
    for name in _MADE:
        yield from (file.parent for file in path.rglob(name))


def _is_in(name: str, folder: str) -> bool:
    return name == folder or name.startswith(f"{folder}/")


PAGE = Page(
    "runs",
    (
        Route("GET", "/runs", _list),
        Route("GET", "/runs-diff", _differences),
        Route("POST", "/runs/{name:path}/resume", _resume),
        Route("POST", "/runs/{name:path}/delete", _delete),
    ),
)
