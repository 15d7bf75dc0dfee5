"""`afina data`: check, show, prepare."""

from typing import TYPE_CHECKING

from rich.text import Text

from afina.core.errors import counted
from afina.ui.common import View, console, plain_table

if TYPE_CHECKING:
    from afina.jobs.data.check import CheckDataResult, CheckDataSettings
    from afina.jobs.data.prepare import PrepareDataResult, PrepareDataSettings
    from afina.jobs.data.preview import PreviewDataResult, PreviewDataSettings
    from afina.jobs.data.show import ShowRowResult, ShowRowSettings

_WIDTH = 70  # characters of a text that is shown in one line
_COLOURS = {"error": "red", "warning": "yellow", "note": "dim"}


def _show_check(settings: "CheckDataSettings", result: "CheckDataResult") -> None:
    """Prints what a check of data found, errors first, and what comes next."""
    out = console()
    out.print(
        f"{result.path}: {counted(result.rows_in, 'row')}, {result.rows_kept} can be "
        f"used, {result.rows_reported} cannot",
        markup=False,
    )
    if result.layout:
        out.print(f"layout: {result.layout}", markup=False)
    for row in result.samples:
        asked, answer = (_short(row[name]) for name in ("prompt", "completion"))
        out.print(f"  {asked} → {answer}" if asked else f"  {answer}", markup=False)
    for line in result.notes[:10]:
        out.print(f"  {line}", markup=False)
    for line in result.reasons[:10]:
        out.print(f"  not used: {line}", markup=False)
    if result.lengths:
        shown = ", ".join(f"{name} {value}" for name, value in result.lengths.items())
        out.print(f"tokens per row: {shown}", markup=False)
    for finding in sorted(result.findings, key=lambda f: list(_COLOURS).index(f.severity)):
        out.print(f"\n{finding.severity} ", style=_COLOURS[finding.severity], end="")
        out.print(finding.text, markup=False)
        for where in finding.rows:
            out.print(f"    {where}", markup=False)
    out.print(f"\n{result.verdict}", markup=False)
    out.print(f"next:\n  {result.following.replace(chr(10), chr(10) + '  ')}", markup=False)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"


def _show_row(settings: "ShowRowSettings", result: "ShowRowResult") -> None:
    """Prints a row token by token, those that are learned in green (without colours: in brackets)."""
    out = console()
    text = Text()
    for i, (token, learned) in enumerate(result.tokens):
        if not out.is_terminal:
            text.append(f"[{token}]" if learned else token)
        elif learned:
            text.append(token, "black on bright_green" if i % 2 else "black on green")
        else:
            text.append(token, "dim" if i % 2 else "")
    learned_tokens = sum(learned for _, learned in result.tokens)
    out.print(f"{result.where}: {counted(len(result.tokens), 'token')}, {learned_tokens} of them learned", markup=False)
    out.print(text)


def _show_prepared(settings: "PrepareDataSettings", result: "PrepareDataResult") -> None:
    for what, n in result.done.items():
        print(f"{what}: {counted(n, 'row')}")
    for part, rows in (("train", result.train), ("test", result.test)):
        if rows:
            print(f"{counted(rows, 'row')} in {settings.out / part}.{settings.prepare.format}")


def _show_preview(settings: "PreviewDataSettings", result: "PreviewDataResult") -> None:
    """Prints the first rows as a table, and what would be asked and answered."""
    out = console(whole_lines=True)
    grid = plain_table()
    for name in result.columns:
        grid.add_column(Text(name))
    for row in result.rows:
        grid.add_row(*(Text(_short(row.get(name, ""))) for name in result.columns))
    out.print(grid)
    for where, why in result.rejected[:10]:
        out.print(f"  not used: {where}: {why}", markup=False)
    for name, value in result.mapping.items():
        out.print(f"{name}: {value}", markup=False)
    if result.reason:
        out.print(result.reason, markup=False)


VIEWS = {
    "data preview": View(_show_preview),
    "data check": View(_show_check, exit_code=lambda result: 0 if result.ready else 1),
    "data show": View(_show_row),
    "data prepare": View(_show_prepared, json=False),
}
