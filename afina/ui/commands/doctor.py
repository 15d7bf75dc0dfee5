"""`afina doctor`."""

from typing import TYPE_CHECKING

from afina.ui.common import View, console

if TYPE_CHECKING:
    from afina.jobs.doctor import DoctorResult, DoctorSettings

_COLOURS = {"ok": "green", "warning": "yellow", "wrong": "red"}


def _show(settings: "DoctorSettings", result: "DoctorResult") -> None:
    """Prints each finding on a line, with what to do below where something is not well."""
    out = console()
    for each in result.findings:
        out.print(f"{each.state:7} ", style=_COLOURS[each.state], end="")
        out.print(f"{each.what}: {each.found}", markup=False)
        if each.remedy:
            out.print(f"        → {each.remedy}", markup=False)
    if not result.findings:
        print("nothing is wrong in these files")


VIEWS = {"doctor": View(_show, exit_code=lambda result: int(result.wrong))}  # 1 where something is wrong
