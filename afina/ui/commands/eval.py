"""`afina eval`, on a file of examples and with --tasks."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from afina.core.config import json_object
from afina.core.errors import counted
from afina.measure.pages.summary import general_lines, label, number, table, trivial_lines, verdict
from afina.runs.facts import adapter_folder
from afina.ui.common import View, console, plain_table

if TYPE_CHECKING:
    from afina.jobs.evaluate import EvaluateResult, EvaluateSettings
    from afina.jobs.evaluate_served import EvaluateServedResult, EvaluateServedSettings
    from afina.jobs.harness import HarnessResult, HarnessSettings


def show_evaluation(evaluation: dict[str, Any], files: dict[str, Path]) -> None:
    """Prints the table of `evaluation.json`'s object, the verdict, and where `files` are."""
    out = console()
    grid = plain_table(f"{counted(evaluation['rows'], 'row')} of {evaluation['data']}")
    grid.add_column("metric")
    for name in ("base", "adapted", "difference", "95 % interval"):
        grid.add_column(name, justify="right", no_wrap=True)
    for row in table(evaluation):
        grid.add_row(row["label"], row["base"], row["adapted"], row["difference"], row["interval"])
    out.print(grid)
    out.print(f"\n{verdict(evaluation)}", markup=False)
    for finding in evaluation["findings"]:
        out.print("warning ", style="yellow", end="")
        out.print(finding, markup=False)
    out.print(f"Trivial baselines: {'; '.join(trivial_lines(evaluation))}.", markup=False)
    for line in general_lines(evaluation):
        out.print(f"Forgetting: {line}.", markup=False)
    for name, signature in evaluation["signatures"].items():
        out.print(f"{name} {signature}", style="dim")
    for name, path in files.items():
        out.print(f"{name}: {path}", markup=False)


def _show(settings: "EvaluateSettings", result: "EvaluateResult") -> None:
    files = {"adapter": adapter_folder(settings.run), "report": settings.run / "report.html"}
    show_evaluation(json_object(result), {name: path for name, path in files.items() if path.exists()})


def _show_served(settings: "EvaluateServedSettings", result: "EvaluateServedResult") -> None:
    """Prints the scores of the served models with their 95 % intervals."""
    out = console()
    out.print(f"{counted(result.rows, 'row')} of {settings.data}, answered by {result.model} ({result.fingerprint})")
    for name, value in result.adapted.items():
        if isinstance(value, dict):
            continue
        base = f"   base {number(name, result.base[name]):>9}" if name in result.base else ""
        low, high = result.interval["adapted"].get(name) or (None, None)
        between = f"  ({number(name, low)} to {number(name, high)})" if low is not None else ""
        out.print(f"  {label(name):32}{base}   adapted {number(name, value):>9}{between}", markup=False)


def _show_tasks(settings: "HarnessSettings", result: "HarnessResult") -> None:
    """Prints each task's metrics of the base and of the adapted model, with their standard errors."""
    out = console()
    for task, metrics in result.tasks.items():
        out.print(f"{task} ({result.rows.get(task, '?')} rows)", markup=False)
        for name, scores in metrics.items():
            base, adapted = (_with_error(scores[model], scores[f"{model}_stderr"]) for model in ("base", "adapted"))
            out.print(f"  {name:28} base {base:>18}   adapted {adapted:>18}", markup=False)


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


VIEWS = {"eval": View(_show), "eval --tasks": View(_show_tasks), "eval --url": View(_show_served)}
