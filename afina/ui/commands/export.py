"""`afina export`."""

from typing import TYPE_CHECKING, Any

from afina.core.errors import counted
from afina.measure.pages.summary import interval, label, number
from afina.ui.common import View, console, plain_table, wide_console

if TYPE_CHECKING:
    from afina.jobs.export import ExportResult, ExportSettings


def show_export(result: "ExportResult") -> None:
    """Prints how far each form is from the adapted model, and where the files are."""
    out = console()
    grid = plain_table()
    grid.add_column("form")
    for heading in (
        "MB",
        "largest Δ logit",
        "mean",
        "KL per token",
        "first tokens",
        label(result.metric),
        "difference",
        "95 %",
    ):
        grid.add_column(heading, justify="right", no_wrap=True)
    grid.add_row("adapted model", "", "", "", "", "", number(result.metric, result.score), "", "")
    for name, form in result.forms.items():
        if "differences" in form:
            grid.add_row(name, *_cells(result, form))
    wide_console().print(grid)
    for name, form in result.forms.items():
        for note in form["notes"]:
            out.print(f"{name}: {note}", markup=False)
    for repository, done in result.published.items():
        _show_published(repository, done)
    out.print(f"files: {result.folder} (EXPORT.md says how other programs run them)", markup=False)


def _cells(result: "ExportResult", form: dict[str, Any]) -> list[str]:
    found, files = form["differences"], result.files
    size = sum(files[name]["bytes"] for name in form["files"] if name in files)
    return [
        f"{size / 1e6:,.1f}",
        f"{found['largest']:.2g}",
        f"{found['mean']:.2g}",
        f"{found['kl']:.2g}",
        f"{found['first_tokens']:.1%}",
        number(result.metric, found["score"]),
        number(result.metric, found["difference"]["value"], sign=True),
        interval(result.metric, found["difference"]),
    ]


def _show_published(repository: str, done: dict[str, Any]) -> None:
    out = console()
    for name, size in done["files"].items():
        out.print(f"  {size:>15,}  {name}", markup=False)
    size = f"{sum(done['files'].values()) / 1e6:,.1f} MB"
    what = f"{counted(len(done['files']), 'file')}, {size}, {done['visibility']}"
    said = f"uploaded: {done['url']}" if done["uploaded"] else f"{repository}: would be uploaded (--dry-run)"
    out.print(f"{said}: {what}", markup=False)


def _show(settings: "ExportSettings", result: "ExportResult") -> None:
    show_export(result)


VIEWS = {"export": View(_show)}
