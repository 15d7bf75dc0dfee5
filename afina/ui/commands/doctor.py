"""`afina doctor`."""

import argparse
import json
from pathlib import Path

from afina.core.errors import writing
from afina.ui.common import say


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", nargs="?", type=Path, metavar="RUN", help="a run that failed or came out poor, instead of this machine"
    )
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="where downloaded models are kept [$AFINA_CACHE, else the user's cache folder]",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, without personal data, for a report of a fault"
    )


def run(options: argparse.Namespace) -> int:
    """1 where something is wrong, 0 where at most something is slow."""
    from dataclasses import asdict

    from afina.ui.display import show_findings

    if options.run:
        from afina.runs.diagnosis import examine

        findings = examine(options.run)
        found = {"findings": [asdict(each) for each in findings]}
    else:
        from afina.jobs.doctor import doctor

        examined = doctor(options.cache_dir)
        findings, found = examined.findings, examined.json()
    if options.json:
        say(json.dumps(found, ensure_ascii=False))
    else:
        with writing("standard output"):
            show_findings(findings)
        if not findings:
            say("nothing is wrong in this run's files")
    return int(any(each.state == "wrong" for each in findings))
