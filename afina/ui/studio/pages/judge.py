"""A run judged: whether it is better than its base, where it errs, what it forgot; and what can be done with it next.

Comparisons, searches and choices of a base lie among the runs, and have a page that says what came of them.
"""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from starlette.responses import Response

from afina.core.config import read_yaml
from afina.core.errors import AfinaError
from afina.core.events import read_events
from afina.core.files import jsonl_rows, read_json
from afina.data.mapping.columns import ColumnTemplate
from afina.measure.pages.rendering import style_source
from afina.ui.studio import scores
from afina.ui.studio.charts import Curves
from afina.ui.studio.pages._preparing import begin_run, minutes_asked
from afina.ui.studio.pages.runs import at_work, entries
from afina.ui.studio.pages.work import looks
from afina.ui.studio.view import Call, Page, Route, go, quick
from afina.ui.studio.words import Refused, Words
from afina.ui.studio.workspace import Workspace

_FILES = ("report.html", "comparison.html", "tuning.html")  # pages of one file that jobs write
_FOUND = {"compare": "comparison.json", "tune": "tuning.json", "choose": "choice.json"}
_POLICY = "default-src 'none'; style-src {}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox"
_STYLE = re.compile(rb"<style>(.*?)</style>", re.DOTALL)
_SPLIT = re.compile(r"(.*) \((held-out|test) split\)", re.DOTALL)
_KEPT = ("base", "revision", "task", "template", "seed")  # of a run's settings, with those of its data


def _choose(call: Call) -> Response:
    found = [entry for entry in entries(call) if entry["state"] != "unreadable"]
    return call.page("judge_list.html", step="judge", entries=found)


def _show(call: Call) -> Response:
    name = call.path("name")
    if not (call.workspace.runs / name).is_dir() and (work := at_work(call, name)):
        return go(f"/work/{work.id}")  # it has written nothing yet
    path = call.workspace.run(name)
    if (path / "search.yaml").is_file():
        return _show_search(call, name, path)
    work = at_work(call, name) or at_work(call, name, ("eval",))
    values: dict[str, Any] = {"step": "judge", "name": name, "work": work}
    try:
        shown = quick("runs show", {"run": path})
    except AfinaError as error:
        return call.page("judge_run.html", problem=error, shown=None, evaluation=None, **values)
    evaluation = read_json(path / "evaluation.json") if (path / "evaluation.json").is_file() else None
    own = _data_file(call.workspace, shown.data)
    needed = _columns_of(read_yaml(path / "config.yaml")["data"])
    files = (file for file in call.workspace.usable_files() if file != own)
    others = [file for file in files if needed <= _columns(file, file.stat().st_ctime_ns)]
    events = read_events(path / "metrics.jsonl") if (path / "metrics.jsonl").is_file() else []
    curves = Curves.of(events)
    return call.page(
        "judge_run.html", problem=None, shown=shown, evaluation=evaluation, own=own, file=Path(shown.data).name,
        others=others,
        curves=curves, measure=scores.metric(call.words, curves.measure), answers=looks(events),
        has_adapter=(path / "adapter" / "adapter_config.json").is_file(), report=(path / "report.html").is_file(),
        **(_judged(call, path, evaluation) if evaluation else {}), **values,
    )  # fmt: skip


def _judged(call: Call, path: Path, evaluation: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of an evaluation."""
    words, difference = call.words, evaluation["difference"][evaluation["main_metric"]]
    answers = list(jsonl_rows(path / "predictions.jsonl")) if (path / "predictions.jsonl").is_file() else []
    wanted = [i for i in evaluation.get("groups", {}).get("worst", []) if i < len(answers)]
    return {
        "verdict": scores.verdict(words, evaluation),
        "tone": scores.tone(difference),
        "trivial": scores.trivial(words, evaluation),
        "rows": list(scores.rows(words, evaluation)),
        "details": list(scores.details(words, evaluation)),
        "forgotten": scores.forgotten(words, evaluation),
        "worst": [(i, answers[i]) for i in wanted],
        "evaluated_on": _source(words, Path(evaluation["data"]).name),
    }


def _source(words: Words, name: str) -> str:
    """Where the rows of an evaluation are from."""
    found = _SPLIT.fullmatch(name)
    return words(f"judge.{found[2].replace('-', '_')}", data=found[1]) if found else name


def _data_file(workspace: Workspace, told: str) -> Path | None:
    """The file that a run was trained on; None where it is not in the workspace any more."""
    return next((file for file in workspace.data_files() if str(file) == told), None)


def _columns_of(data: dict[str, Any]) -> set[str]:
    """The columns that a run's rows were asked and answered from, as its templates name them."""
    templates = (data[name] for name in ("prompt", "completion") if data.get(name))
    return {column for each in templates for column in ColumnTemplate(each, "").columns}


@lru_cache(maxsize=256)
def _columns(file: Path, changed: int) -> set[str]:
    """Those of a file as it is since `changed`; none where it cannot be read."""
    try:
        return set(quick("data preview", {"rows": 1, "data": {"path": str(file)}}).columns)
    except AfinaError:
        return set()


def _show_search(call: Call, name: str, path: Path) -> Response:
    record = read_yaml(path / "search.yaml")
    what = str(record.get("search"))
    file = path / _FOUND.get(what, "search.yaml")
    found = entries(call)
    below = [entry for entry in found if entry["name"].startswith(f"{name}/")]
    own = next((entry for entry in found if entry["name"] == name), {})
    return call.page(
        "judge_search.html", step="judge", name=name, what=what, own=own, below=below, work=at_work(call, name),
        told=read_json(file) if file.suffix == ".json" and file.is_file() else None,
        page=next((each for each in _FILES if (path / each).is_file()), ""),
        metric=lambda key: scores.metric(call.words, key),
        score=lambda key, value: scores.score(call.words, key, value),
    )  # fmt: skip


def _file(call: Call) -> Response:
    """The page that a job wrote, as it is; it may have its own stylesheet, and nothing else."""
    folder = call.workspace.run(call.path("name"))
    path = next((folder / each for each in _FILES if (folder / each).is_file()), None)
    if path is None or path.is_symlink():
        raise Refused("no_report", name=call.path("name"))
    content = path.read_bytes()
    styles = " ".join(map(style_source, _STYLE.findall(content)))
    headers = {"content-security-policy": _POLICY.format(styles or "'none'"), "cache-control": "no-store"}
    return Response(content, media_type="text/html; charset=utf-8", headers=headers)


def _evaluate(call: Call) -> Response:
    """Scores the run on another file. Raises `Refused`, as the others."""
    name, file = call.path("name"), call.workspace.data_file(call.text("file"))
    encoding = call.workspace.reading(file.name).get("encoding")
    settings = {"run": call.workspace.run(name), "data": file} | ({"encoding": encoding} if encoding else {})
    return go(f"/work/{call.queue.add('eval', settings, name).id}")


def _compare(call: Call) -> Response:
    """Trains the other methods on the same rows."""
    return _search(call, "compare")


def _tune(call: Call) -> Response:
    """Looks for better settings on the same rows."""
    return _search(call, "tune")


def _search(call: Call, job: str) -> Response:
    path = call.workspace.run(call.path("name"))
    shown = quick("runs show", {"run": path})
    if _data_file(call.workspace, shown.data) is None:
        raise Refused("data_gone")
    config = read_yaml(path / "config.yaml")
    values = {key: config[key] for key in _KEPT if config.get(key) is not None}
    values["data"] = {key: value for key, value in config["data"].items() if value not in (None, {}, [])}
    return begin_run(call, job, {"minutes": minutes_asked(call), "run": values}, path.name)


PAGE = Page(
    "judge",
    (
        Route("GET", "/judge", _choose),
        Route("GET", "/runs/{name:path}/report.html", _file),
        Route("GET", "/runs/{name:path}", _show),
        Route("POST", "/runs/{name:path}/evaluate", _evaluate),
        Route("POST", "/runs/{name:path}/compare", _compare),
        Route("POST", "/runs/{name:path}/tune", _tune),
    ),
)
