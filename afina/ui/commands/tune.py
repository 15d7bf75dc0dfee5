"""`afina tune`."""

from typing import TYPE_CHECKING

from afina.core.text import command_line
from afina.ui.common import View, console

if TYPE_CHECKING:
    from afina.jobs.tune import TuneResult, TuneSettings


def _show(settings: "TuneSettings", result: "TuneResult") -> None:
    """Prints what the search found, and what comes next."""
    out = console()
    for sentence in result.words:
        out.print(sentence, markup=False)
    if result.importances:
        ranked = sorted(result.importances.items(), key=lambda each: -each[1])
        shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in ranked)
        out.print(f"what mattered: {shares}", markup=False)
    out.print("a next hour would try:", markup=False)
    for line in result.next_hour:
        out.print(f"  {line}", markup=False)
    out.print(f"page: {result.folder / 'tuning.html'}", markup=False)
    out.print(f"use it:  {command_line('train', '--config', result.config, '--out', 'my-run')}")


VIEWS = {"tune": View(_show)}
