"""`afina runs`."""

import argparse
import json
from pathlib import Path

from afina.core.errors import SettingsError, writing
from afina.ui.common import say

_COUNTS = {"list": (0, 1), "show": (1, 1), "diff": (2, 2)}


def flags(parser: argparse.ArgumentParser) -> None:
    parser.usage = "afina runs list [DIR] | show RUN | diff RUN RUN [--json]"
    parser.add_argument("action", choices=list(_COUNTS), help="list runs below DIR (runs), show one, or compare two")
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folders that `afina train` wrote")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    from afina.runs.history import diff_runs, list_runs, show_run
    from afina.ui.display import show_diff, show_run_facts, show_runs

    action, runs = options.action, options.runs
    least, most = _COUNTS[action]
    if not least <= len(runs) <= most:
        raise SettingsError(f"afina runs {action} takes {most} folder{'s' * (most > 1)}, {len(runs)} were given")
    if action == "list":
        listed = list_runs(runs[0] if runs else Path("runs"))
        if options.json:
            say(json.dumps(listed, ensure_ascii=False))
            return 0
        with writing("standard output"):
            show_runs(listed)
        return 0
    found = show_run(runs[0]) if action == "show" else diff_runs(*runs)
    if options.json:
        say(json.dumps(found, ensure_ascii=False))
        return 0
    with writing("standard output"):
        (show_run_facts if action == "show" else show_diff)(found)
    return 0
