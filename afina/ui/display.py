"""What a person sees of a run: a live line on a terminal, plain lines elsewhere, and the table at the end."""

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress as RichProgress
from rich.progress import TextColumn
from rich.table import Table
from rich.text import Text

from afina.core.events import Done, Event, HeldOut, Notice, Progress, Step, minutes
from afina.data.quality.checks import Check, percentiles
from afina.measure.pages.data_pages import Rendered
from afina.measure.pages.summary import general_lines, interval, label, number, table, trivial_lines, verdict

if TYPE_CHECKING:
    from afina.core.finding import Finding

_SECONDS_BETWEEN_LINES = 15.0
_WIDTH = 70  # characters of a text that is shown in one line


class Display:
    """A listener that writes to standard error."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live: RichProgress | None = None
        self._task: Any = None
        self._last_line = 0.0
        self._held_out = ""

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._live = RichProgress(TextColumn("{task.description}"), console=self._console, transient=True)
            self._task = self._live.add_task("", total=None)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        match event:
            case Notice():
                self._say(f"warning: {event.text}" if event.warning else event.text)
            case Step():
                self._tick(
                    f"step {event.step}/{event.total}  loss {event.loss:.3f}{self._held_out}  "
                    f"{event.tokens_per_second:.0f} tokens/s  {event.memory_gb:.1f} GB  {minutes(event.seconds_left)} left",
                    event.step == 1,
                )
            case HeldOut():
                self._held_out = f"  held out {event.value:.3f}"
                self._say(
                    f"after step {event.step}: held-out {event.measure} {event.value:.3f}"
                    f"{', the best of training so far' if event.best else ''}"
                )
            case Progress():
                self._tick(f"{event.stage}: {event.done} of {event.total}", event.done == event.total)
            case Done():
                self._held_out = ""
                self._say(
                    f"training {event.reason}: {event.steps} steps in {minutes(event.seconds)}, "
                    f"{event.tokens_per_second:.0f} tokens/s, peak memory {event.peak_memory_gb:.1f} GB"
                )

    def _say(self, text: str) -> None:
        with suppress(OSError):  # news that cannot be told must not end the work
            self._console.print(text, markup=False)

    def _tick(self, text: str, important: bool) -> None:
        """News that replace each other: on the live line of a terminal, else a plain line now and then."""
        if self._live:
            self._live.update(self._task, description=text)
        elif important or time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._say(text)


def show_result(evaluation: dict[str, Any], paths: dict[str, Path]) -> None:
    """Prints the table of `evaluation.json`'s object, the verdict, and where things lie, to standard output."""
    console = Console(highlight=False, soft_wrap=True, file=sys.stdout)
    grid = Table(
        title=f"{evaluation['rows']} rows of {evaluation['data']}", title_justify="left", box=None, pad_edge=False
    )
    grid.add_column("metric")
    for name in ("base", "adapted", "difference", "95 % interval"):
        grid.add_column(name, justify="right")
    for row in table(evaluation):
        grid.add_row(row["label"], row["base"], row["adapted"], row["difference"], row["interval"])
    console.print(grid)
    console.print(f"\n{verdict(evaluation)}", markup=False)
    for finding in evaluation["findings"]:
        console.print("[yellow]warning[/] ", end="")
        console.print(finding, markup=False)
    console.print(f"Trivial baselines: {'; '.join(trivial_lines(evaluation))}.", markup=False)
    for line in general_lines(evaluation):
        console.print(f"Forgetting: {line}.", markup=False)
    for name, signature in evaluation["signatures"].items():
        console.print(f"[dim]{name} {signature}[/]")
    for name, path in paths.items():
        console.print(f"{name}: {path}", markup=False)


def show_comparison(comparison: dict[str, Any], folder: Path) -> None:
    """Prints the methods side by side, what follows, and where things lie."""
    from afina.search.comparison import table as methods_table

    console = Console(highlight=False, soft_wrap=True, file=sys.stdout)
    if not console.is_terminal:
        console.width = 1000  # a file has no edge
    if comparison["metric"]:
        heads, lines = methods_table(comparison)
        grid = Table(
            title=f"{comparison['rows']} rows of {comparison['data']}", title_justify="left", box=None, pad_edge=False
        )
        for i, head in enumerate(heads):
            grid.add_column(head, justify="right" if i else "left")
        for line in lines:
            grid.add_row(*line)
        console.print(grid)
    for name, entry in comparison["methods"].items():
        if "failed" in entry:
            console.print(f"{name} failed: {entry['failed']}", markup=False)
    console.print()
    for line in comparison["words"]:
        console.print(line, markup=False)
    console.print(f"page: {folder / 'comparison.html'}", markup=False)


def show_tuning(tuning: dict[str, Any], folder: Path) -> None:
    """Prints what a search found, and what comes next."""
    console = Console(highlight=False, soft_wrap=True, file=sys.stdout)
    for line in tuning["words"]:
        console.print(line, markup=False)
    if tuning["importances"]:
        ranked = sorted(tuning["importances"].items(), key=lambda each: -each[1])
        console.print(
            "what mattered: " + ", ".join(f"{name} {100 * part:.0f} %" for name, part in ranked), markup=False
        )
    console.print("a next hour would try:", markup=False)
    for line in tuning["next_hour"]:
        console.print(f"  {line}", markup=False)
    console.print(
        f"page: {folder / 'tuning.html'}\nuse it:  afina train --config {tuning['config']} --out my-run", markup=False
    )


def show_tasks(found: dict[str, Any]) -> None:
    """Prints each task's metrics of the base and of the adapted model, with their standard errors."""
    console = Console(highlight=False, soft_wrap=True, file=sys.stdout)
    for task, metrics in found["tasks"].items():
        console.print(f"{task} ({found['rows'].get(task, '?')} rows)", markup=False)
        for name, scores in metrics.items():
            shown = [_with_error(scores[model], scores[f"{model}_stderr"]) for model in ("base", "adapted")]
            console.print(f"  {name:28} base {shown[0]:>18}   adapted {shown[1]:>18}", markup=False)


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def show_runs(runs: list[dict[str, Any]]) -> None:
    """Prints a line a run."""
    console = Console(highlight=False, soft_wrap=True, file=sys.stdout)
    if not console.is_terminal:
        console.width = 1000  # a file has no edge
    grid = Table(box=None, pad_edge=False)
    heads = "run,date,data,model,method,state,score,base,adapted,95 % interval,verdict,rows,minutes"
    for head in heads.split(","):
        grid.add_column(head, no_wrap=True, overflow="ignore")
    for run in runs:
        name = run.get("metric", "")
        scores = [number(name, run[key]) if key in run else "" for key in ("base_score", "adapted_score")]
        gain = interval(name, run["difference"]) if "difference" in run else ""
        grid.add_row(
            run["run"], run["date"], Path(run.get("data", "")).name, Path(run.get("base", "")).name, run.get("method", ""),
            run["state"], label(name), *scores, gain, run.get("verdict", ""), str(run.get("rows", "")), str(run.get("minutes", "")),
        )  # fmt: skip
    console.print(grid) if runs else console.print("no runs here")
    for run in runs:
        if "problem" in run:
            console.print(f"{run['run']}: {run['problem']}", markup=False)


def show_run_facts(run: dict[str, Any]) -> None:
    """Prints what a run was and what came of it."""
    console = Console(highlight=False, soft_wrap=True, file=sys.stdout)
    for name in ("run", "data", "base", "method"):
        console.print(f"{name}: {run[name]}", markup=False)
    for name, value in run["settings"].items():
        console.print(f"  {name}: {value}", markup=False)
    if "training" in run:
        console.print(
            "training: " + ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in run["training"].items()), markup=False
        )
    for row in run.get("table", ()):
        console.print(f"  {row['label']:36} {row['base']:>10} {row['adapted']:>10}  {row['interval']}", markup=False)
    for line in [run["verdict"], *run.get("findings", ())]:
        console.print(line, markup=False)
    if "report" in run:
        console.print(f"report: {run['report']}", markup=False)


def show_diff(diff: dict[str, Any]) -> None:
    """Prints what two runs differ in."""
    console = Console(highlight=False, soft_wrap=True, file=sys.stdout)
    for name, (a, b) in diff["settings"].items():
        console.print(f"{name}: {a} → {b}", markup=False)
    if not diff["settings"]:
        console.print("the settings are the same")
    for name, (a, b) in diff.get("scores", {}).items():
        console.print(f"  {label(name):36} {number(name, a):>10} {number(name, b):>10}", markup=False)
    console.print(diff["words"], markup=False)


def show_findings(findings: Sequence["Finding"]) -> None:
    """Prints what was looked at, a line each, with what to do below where something is not well."""
    console = Console(highlight=False, soft_wrap=True, file=sys.stdout)
    colours = {"ok": "green", "slow": "yellow", "wrong": "red"}
    for each in findings:
        console.print(f"[{colours[each.state]}]{each.state:5}[/] ", end="")
        console.print(f"{each.what}: {each.found}", markup=False)
        if each.remedy:
            console.print(f"      → {each.remedy}", markup=False)


def show_check(found: Check, following: str) -> None:
    """Prints what a check of data found, errors first, and what comes next."""
    console = Console(highlight=False, soft_wrap=True, file=sys.stdout)
    console.print(
        f"{found.path}: {found.rows_in} rows, {found.rows_kept} can be used, {found.rows_reported} cannot", markup=False
    )
    if found.layout:
        console.print(f"layout: {found.layout}", markup=False)
    for row in found.samples:
        asked, answer = (_short(row[name]) for name in ("prompt", "completion"))
        console.print(f"  {asked} → {answer}" if asked else f"  {answer}", markup=False)
    for line in found.notes[:10]:
        console.print(f"  {line}", markup=False)
    for line in found.reasons[:10]:
        console.print(f"  not used: {line}", markup=False)
    lengths = percentiles(found.lengths)
    if lengths:
        shown = ", ".join(f"{name} {value}" for name, value in lengths.items())
        console.print(f"tokens a row: {shown}", markup=False)
    colours = {"error": "red", "warning": "yellow", "note": "dim"}
    for finding in sorted(found.findings, key=lambda f: list(colours).index(f.severity)):
        console.print(f"\n[{colours[finding.severity]}]{finding.severity}[/] ", end="")
        console.print(finding.text, markup=False)
        for where in finding.rows:
            console.print(f"    {where}", markup=False)
    console.print(f"\n{found.verdict}", markup=False)
    console.print(f"next:\n  {following.replace(chr(10), chr(10) + '  ')}", markup=False)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"


def show_tokens(row: Rendered) -> None:
    """Prints a row, each token set apart, those that are learned in green (without colours: in brackets)."""
    console = Console(highlight=False, soft_wrap=True, file=sys.stdout)
    text = Text()
    for i, (token, learned) in enumerate(row.tokens):
        if console.is_terminal:
            text.append(
                token, ("black on bright_green" if i % 2 else "black on green") if learned else ("dim" if i % 2 else "")
            )
        else:
            text.append(f"[{token}]" if learned else token)
    learned_tokens = sum(learned for _, learned in row.tokens)
    console.print(f"{row.where}: {len(row.tokens)} tokens, {learned_tokens} of them learned", markup=False)
    console.print(text)
