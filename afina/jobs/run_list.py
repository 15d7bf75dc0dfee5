"""Runs as things: listed, shown, compared with each other."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from afina.core.config import fields, read_yaml
from afina.core.errors import InputError
from afina.core.events import Done, parse
from afina.core.files import read_json, read_jsonl
from afina.jobs.settings import RunSettings
from afina.measure.comparison import main_metric
from afina.measure.evaluation import told
from afina.measure.intervals import paired_difference
from afina.measure.report import table, verdict

_DECIDED = ("out", "overwrite", "data.path")  # differ between runs without saying anything


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """The runs below `folder`, the newest first. One that cannot be read says why, and does not stop the list.

    Raises `InputError` where there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder", "give a folder with runs; `afina train` makes them in runs/")
    found = [_entry(path) for path in _runs(folder)]
    return sorted(found, key=lambda entry: str(entry["date"]), reverse=True)


def _runs(folder: Path) -> Iterator[Path]:
    """Folders of runs; what is inside a run is none."""
    if (folder / "config.yaml").is_file():
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            yield from _runs(path)


def _entry(run: Path) -> dict[str, Any]:
    date = datetime.fromtimestamp((run / "config.yaml").stat().st_mtime).isoformat(" ", "minutes")
    entry: dict[str, Any] = {"run": str(run), "date": date}
    try:
        config, done, evaluation = _read(run)
        entry |= {"data": config["data"]["path"], "base": config["base"], "method": config["method"]}
        entry["state"] = "complete" if evaluation else "not evaluated" if done else "cut off"
        if done:
            entry["minutes"] = round(done.seconds / 60, 1)
        if evaluation:
            name = evaluation["main_metric"]
            entry |= {
                "metric": name,
                "base_score": evaluation["base"][name],
                "adapted_score": evaluation["adapted"][name],
            }
            entry |= {"verdict": evaluation["difference"][name]["verdict"], "rows": evaluation["rows"]}
    except (InputError, KeyError, TypeError, ValueError, OSError) as error:
        entry |= {"state": "unreadable", "problem": str(error)}
    return entry


def _read(run: Path) -> tuple[dict[str, Any], Done | None, dict[str, Any] | None]:
    """A run's settings, its end, and its evaluation, as far as they are there. Raises `InputError`."""
    if not (run / "config.yaml").is_file():
        raise InputError(f"{run} holds no run", "give the folder that `afina train` wrote (its --out)")
    config = read_yaml(run / "config.yaml")
    events = read_jsonl(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    done = next((event for row in reversed(events) if isinstance(event := parse(row), Done)), None)
    evaluation = read_json(run / "evaluation.json") if (run / "evaluation.json").exists() else None
    return config, done, evaluation


def show_run(run: Path) -> dict[str, Any]:
    """What a run was made of, its settings that are no defaults, and its result. Raises `InputError`."""
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
    shown["verdict"] = verdict(evaluation) if evaluation else "not evaluated: `afina train --resume` goes on with it"
    if evaluation:
        shown["findings"] = evaluation["findings"]
        shown["table"] = list(table(evaluation))
        shown["report"] = str(run / "report.html")
    return shown


def _unusual(config: dict[str, Any]) -> dict[str, Any]:
    """Settings, by dotted path, that are not the defaults."""
    flat = _flat(config)
    return {
        field.path: flat[field.path]
        for field in fields(RunSettings)
        if field.path not in _DECIDED and field.path in flat and _plain(flat[field.path]) != _plain(field.default)
    }


def _plain(value: Any) -> Any:
    """Equal for what YAML does not tell apart."""
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
    """The difference of the main metric, where both were asked the same."""
    files = [run / "predictions.jsonl" for run in (first, second)]
    rows = [read_jsonl(file) if file.exists() else [] for file in files]
    asked = [[(row["where"], row["prompt"], row["references"]) for row in each] for each in rows]
    if a["main_metric"] != b["main_metric"] or not rows[0] or asked[0] != asked[1]:
        return {"words": "They were evaluated on different rows, so that their scores cannot be compared row by row."}
    one, two = (main_metric(a["kind"], [row["adapted"] for row in each], rows[0]) for each in rows)
    difference = told(paired_difference(one, two))
    words = {"better": "The second is better", "worse": "The second is worse"}.get(
        difference["verdict"], f"The two cannot be told apart ({difference['verdict']})"
    )
    return {
        "difference": difference,
        "words": f"{words}: {a['main_metric']} {difference['value']:+.4g}, 95 % interval {difference['low']:+.4g} to "
        f"{difference['high']:+.4g}, on the same {difference['rows']} rows.",
    }
