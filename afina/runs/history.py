"""Finished and unfinished runs: listed, shown, compared with each other."""

from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from afina.core.config import fields
from afina.core.errors import InputError, counted
from afina.core.events import Done, end_of, read_events
from afina.core.process.locks import in_use
from afina.core.text import command_line
from afina.measure.evaluation import difference_json
from afina.measure.intervals import paired_difference
from afina.measure.metric import Predictions
from afina.measure.metrics import METRICS
from afina.measure.pages.summary import interval, label, number, table, verdict
from afina.runs.files import SEARCH, Config, EvaluationRecord, Prediction, SearchRecord, read_lines
from afina.runs.folder import is_complete, settle
from afina.settings import RunSettings

T = TypeVar("T")

_REMEDY = "restore the file, or write it again: `afina eval RUN DATA` for an evaluation, `afina train` for a run"
_INCIDENTAL = ("out", "overwrite", "data.path")  # differ between runs without meaning anything


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """The runs and searches below `folder`, the newest first; the entry of one that cannot be read says why.

    Raises `InputError` where there is no such folder.
    """
    if not folder.is_dir():
        what = "it is a file, not a folder" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {what}", "give a folder with runs; `afina train` makes them in runs/")
    return sorted(_entries(folder), key=lambda entry: str(entry["date"]), reverse=True)


def _entries(folder: Path, searching: bool = False) -> Iterator[dict[str, Any]]:
    """Of runs, searches, and folders that may not be read; folders inside a run are skipped. `searching`: the folder is
    inside a search that is not finished, which goes on with its runs itself."""
    try:
        settle(folder)
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
        if (folder / "config.yaml").is_file():
            yield _entry(folder, searching)
            return
        if (folder / SEARCH).is_file():
            entry = _search_entry(folder)
            searching = entry["state"] != "complete"
            yield entry
    except OSError as error:
        yield _unreadable(folder, error)
        return
    for path in below:
        if not path.name.startswith("."):
            yield from _entries(path, searching)


def _unreadable(folder: Path, error: Exception, date: str = "") -> dict[str, Any]:
    return {"run": str(folder), "date": date, "state": "unreadable", "problem": str(error)}


def _date(file: Path) -> str:
    return datetime.fromtimestamp(file.stat().st_mtime).isoformat(" ", "minutes")


def _search_entry(folder: Path) -> dict[str, Any]:
    """A search as a whole: what began it, and the command that goes on with it."""
    date = _date(folder / SEARCH)
    try:
        found = _undamaged(SearchRecord.read, folder / SEARCH)
        settings = _undamaged(partial(Config.of, found.plan.get("settings")), folder / SEARCH)
    except InputError as error:
        return _unreadable(folder, error, date)
    entry = {"run": str(folder), "date": date, "method": found.search, "data": settings.data.path}
    if "bases" not in found.plan:  # otherwise it is about several
        entry["base"] = settings.base
    if found.finished:
        return entry | {"state": "complete"}
    return entry | ({"state": "running"} if in_use(folder) else {"state": "cut off", "resume": found.command})


def _entry(run: Path, searching: bool) -> dict[str, Any]:
    date = ""
    try:
        date = _date(run / "config.yaml")
        config, done, evaluation = _read(run)
    except (InputError, OSError) as error:
        return _unreadable(run, error, date)
    entry: dict[str, Any] = {"run": str(run), "date": date, "state": _state(run, done)}
    entry |= {"data": config["data"]["path"], "base": config["base"], "method": config["method"]}
    if entry["state"] not in ("complete", "running") and not searching:
        entry["resume"] = command_line("train", "--resume", run)
    if done:
        entry["minutes"] = round(done.seconds / 60, 1)
    if evaluation:
        name = evaluation["main_metric"]
        entry |= {
            "metric": name,
            "base_score": evaluation["base"][name],
            "adapted_score": evaluation["adapted"][name],
            "difference": evaluation["difference"][name],
            "verdict": evaluation["difference"][name]["verdict"],
            "over_trivial": evaluation["over_trivial"]["verdict"],
            "rows": evaluation["rows"],
        }
    return entry


def _state(run: Path, done: Done | None) -> str:
    """complete, running, not evaluated, interrupted (by Ctrl-C) or cut off (no end was recorded)."""
    if is_complete(run):
        return "complete"
    if in_use(run):
        return "running"
    if done is None:
        return "cut off"
    return "interrupted" if done.reason == "interrupted" else "not evaluated"


def _read(run: Path) -> tuple[dict[str, Any], Done | None, dict[str, Any] | None]:
    """A run's settings, its end and its evaluation, as far as they are there.

    Raises `InputError`, also where one is damaged.
    """
    settle(run)
    config_file, metrics_file, evaluation_file = (run / n for n in ("config.yaml", "metrics.jsonl", "evaluation.json"))
    if (run / SEARCH).is_file():
        raise InputError(
            f"{run} holds a search, not a run", f"`{command_line('runs', 'list', run)}` lists the runs in it"
        )
    if not config_file.is_file():
        raise InputError(f"{run} contains no run", "give the folder that `afina train` wrote (its --out)")
    config = _undamaged(Config.read, config_file).content
    done = end_of(_undamaged(read_events, metrics_file)) if metrics_file.exists() else None
    evaluation = _undamaged(EvaluationRecord.read, evaluation_file).content if evaluation_file.exists() else None
    return config, done, evaluation


def _undamaged(read: Callable[[Path], T], path: Path) -> T:
    """What `read` makes of `path`. Raises `InputError`, with a remedy, where it is damaged."""
    try:
        return read(path)
    except InputError as error:
        raise InputError(str(error).splitlines()[0], _REMEDY) from error
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}", _REMEDY) from error


def show_run(run: Path) -> dict[str, Any]:
    """A run's data, base and method, the settings that are not the defaults, and the result. Raises `InputError`."""
    config, done, evaluation = _read(run)
    shown: dict[str, Any] = {
        "run": str(run),
        "data": config["data"]["path"],
        "base": config["base"],
        "method": config["method"],
    }
    shown["settings"] = _unusual(config)
    if done:
        shown["training"] = {"steps": done.steps, "end": done.reason, "minutes": round(done.seconds / 60, 1)}
        shown["training"] |= {
            "tokens_per_second": round(done.tokens_per_second),
            "peak_memory_gb": round(done.peak_memory_gb, 2),
        }
    shown["verdict"] = verdict(evaluation) if evaluation else "not evaluated: `afina train --resume` resumes it"
    if evaluation:
        shown["findings"] = evaluation.get("findings", [])
        shown["table"] = list(table(evaluation))
        shown["report"] = str(run / "report.html")
    return shown


def _unusual(config: dict[str, Any]) -> dict[str, Any]:
    """Settings, by dotted path, that are not the defaults."""
    flat = _flat(config)
    return {
        field.path: flat[field.path]
        for field in fields(RunSettings)
        if field.path not in _INCIDENTAL and field.path in flat and _plain(flat[field.path]) != _plain(field.default)
    }


def _plain(value: Any) -> Any:
    """Equal for values that YAML does not distinguish."""
    return (
        (list(value) or None)
        if isinstance(value, list | tuple)
        else (value or None)
        if isinstance(value, dict)
        else value
    )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    known = {field.path for field in fields(RunSettings)}
    found: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict) and path not in known:
            found |= _flat(value, f"{path}.")
        else:
            found[path] = value
    return found


def diff_runs(first: Path, second: Path) -> dict[str, Any]:
    """The settings that differ, the results side by side, and whether the second run is better. Raises `InputError`."""
    (a, _, a_result), (b, _, b_result) = _read(first), _read(second)
    settings = {
        path: [_flat(a).get(path), _flat(b).get(path)]
        for path in _flat(a) | _flat(b)
        if path not in ("out", "overwrite") and _flat(a).get(path) != _flat(b).get(path)
    }
    found: dict[str, Any] = {"settings": settings, "words": "One of the two has no evaluation."}
    if a_result and b_result:
        both = [
            name
            for name, value in a_result["adapted"].items()
            if not isinstance(value, dict) and name in b_result["adapted"]
        ]
        found["scores"] = {name: [a_result["adapted"][name], b_result["adapted"][name]] for name in both}
        found |= _paired(first, second, a_result, b_result)
    return found


def _paired(first: Path, second: Path, a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The difference of the main metric, where both were evaluated on the same rows."""
    name = a["main_metric"]
    if name != b["main_metric"]:
        return {"words": f"They have different main metrics: {label(name)} and {label(b['main_metric'])}."}
    rows = [_predictions(run) for run in (first, second)]
    if not all(rows):
        return {"words": "Their predictions are missing, so their difference has no interval."}
    asked = [[(row["prompt"], row["references"]) for row in each] for each in rows]
    if asked[0] != asked[1]:
        return {"words": "They were evaluated on different rows, so their scores cannot be compared row by row."}
    metric = METRICS[name]
    one, two = (
        metric.stats(Predictions(a["kind"], [row["adapted"] for row in each], [row["references"] for row in each]))
        for each in rows
    )
    difference = difference_json(paired_difference(one, two, metric.lower_is_better))
    words = {"better": "The second is better", "worse": "The second is worse"}.get(
        difference["verdict"], f"The two are not clearly different ({difference['verdict']})"
    )
    return {
        "difference": difference,
        "words": f"{words}: {number(name, difference['value'], sign=True)} {label(name)}, 95 % interval "
        f"{interval(name, difference)}, on the same {counted(difference['rows'], 'row')}.",
    }


def _predictions(run: Path) -> list[dict[str, Any]]:
    file = run / "predictions.jsonl"
    return [each.content for each in _undamaged(partial(read_lines, Prediction), file)] if file.exists() else []
