"""`afina compare`."""

from typing import TYPE_CHECKING

from afina.core.config import json_object
from afina.core.errors import counted
from afina.search.comparison import table
from afina.ui.common import View, console, plain_table

if TYPE_CHECKING:
    from afina.jobs.compare import CompareResult, CompareSettings


def _show(settings: "CompareSettings", result: "CompareResult") -> None:
    """Prints the methods side by side, what follows, and where the page is."""
    out = console(whole_lines=True)
    if result.metric:
        heads, lines = table(json_object(result))
        grid = plain_table(f"{counted(result.rows, 'row')} of {result.data}")
        for i, head in enumerate(heads):
            grid.add_column(head, justify="right" if i else "left")
        for line in lines:
            grid.add_row(*line)
        out.print(grid)
    for name, entry in result.methods.items():
        if "failed" in entry:
            out.print(f"{name} failed: {entry['failed']}", markup=False)
    out.print()
    for sentence in result.words:
        out.print(sentence, markup=False)
    out.print(f"page: {result.folder / 'comparison.html'}", markup=False)


def _code(result: "CompareResult") -> int:
    """1 where there is nothing to compare: every method failed."""
    return int(all("failed" in entry for entry in result.methods.values()))


VIEWS = {"compare": View(_show, exit_code=_code)}
