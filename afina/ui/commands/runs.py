"""`afina runs`: list, show, diff, forms."""

from pathlib import Path
from typing import TYPE_CHECKING

from afina.measure.pages.summary import interval, label, number
from afina.ui.common import View, console, in_words, plain_table

if TYPE_CHECKING:
    from afina.jobs.runs.diff import DiffRunsResult, DiffRunsSettings
    from afina.jobs.runs.forms import FormsOfRunResult, FormsOfRunSettings
    from afina.jobs.runs.list import ListRunsResult, ListRunsSettings
    from afina.jobs.runs.show import ShowRunResult, ShowRunSettings

_HEADS = "run,date,data,model,method,state,score,base,adapted,95 % interval,verdict,rows,minutes"


def _show_list(settings: "ListRunsSettings", result: "ListRunsResult") -> None:
    """Prints a line per run."""
    out = console(whole_lines=True)
    grid = plain_table()
    for head in _HEADS.split(","):
        grid.add_column(head, no_wrap=True, overflow="ignore")
    for run in result.root:
        name = run.get("metric", "")
        scores = [number(name, run[key]) if key in run else "" for key in ("base_score", "adapted_score")]
        gain = interval(name, run["difference"]) if "difference" in run else ""
        grid.add_row(
            run["run"], run["date"], Path(run.get("data", "")).name, Path(run.get("base", "")).name,
            run.get("method", ""), run["state"], label(name), *scores, gain, run.get("verdict", ""),
            str(run.get("rows", "")), str(run.get("minutes", "")),
        )  # fmt: skip
    out.print(grid if result.root else "no runs here")
    for run in result.root:
        if "problem" in run:
            out.print(f"{run['run']}: {run['problem']}", markup=False)
        if "resume" in run:
            out.print(f"{run['run']} is {run['state']}; to go on: {run['resume']}", markup=False)


def _show_run(settings: "ShowRunSettings", result: "ShowRunResult") -> None:
    """Prints what a run was and what came of it."""
    out = console()
    for name in ("run", "data", "base", "method"):
        out.print(f"{name}: {getattr(result, name)}", markup=False)
    for name, value in result.settings.items():
        out.print(f"  {name}: {value}", markup=False)
    if result.training:
        out.print("training:")
    for name, value in result.training.items():
        out.print(f"  {in_words(name)}: {value}", markup=False)
    for row in result.table:
        out.print(f"  {row['label']:36} {row['base']:>10} {row['adapted']:>10}  {row['interval']}", markup=False)
    for line in [result.verdict, *result.findings]:
        out.print(line, markup=False)
    if result.report:
        out.print(f"report: {result.report}", markup=False)


def _show_diff(settings: "DiffRunsSettings", result: "DiffRunsResult") -> None:
    """Prints what two runs differ in."""
    out = console()
    for name, (a, b) in result.settings.items():
        out.print(f"{name}: {a} → {b}", markup=False)
    if not result.settings:
        out.print("the settings are the same")
    for name, (a, b) in result.scores.items():
        out.print(f"  {label(name):36} {number(name, a):>10} {number(name, b):>10}", markup=False)
    out.print(result.words, markup=False)


def _show_forms(settings: "FormsOfRunSettings", result: "FormsOfRunResult") -> None:
    """Prints a line per form that is possible, then what stands against the others."""
    out = console()
    grid = plain_table()
    grid.add_column("form")
    grid.add_column("MB", justify="right")
    for name, form in result.forms.items():
        if not form.problems:
            grid.add_row(name, f"{form.bytes / 1e6:,.1f}")
    out.print(grid)
    for name, form in result.forms.items():
        for problem in form.problems:
            out.print(f"not {name}: {problem}", markup=False)


VIEWS = {
    "runs list": View(_show_list),
    "runs show": View(_show_run),
    "runs diff": View(_show_diff),
    "runs forms": View(_show_forms),
}
