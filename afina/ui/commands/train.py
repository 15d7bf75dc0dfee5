"""`afina train`, with and without --resume."""

from pathlib import Path
from typing import TYPE_CHECKING

from afina.core.config import Settings, json_object
from afina.measure.pages.report import try_command
from afina.ui.commands.eval import show_evaluation
from afina.ui.commands.export import show_export
from afina.ui.common import View

if TYPE_CHECKING:
    from afina.jobs.train import TrainResult


def _show(settings: Settings, result: "TrainResult") -> None:
    files: dict[str, Path] = {"adapter": result.adapter, "report": result.report}
    show_evaluation(json_object(result.evaluation), files)
    if result.export:
        print()
        show_export(result.export)
    print(f"\nTry it:  {try_command(result.folder, result.prompt)}")


VIEWS = {name: View(_show, json=False) for name in ("train", "train --resume")}
