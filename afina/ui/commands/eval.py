"""`afina eval`."""

import argparse
import json
from pathlib import Path

from afina.core.errors import writing
from afina.ui.common import opening, positive, run_flags, say


def flags(parser: argparse.ArgumentParser) -> None:
    run_flags(parser)
    parser.add_argument("data", type=Path, metavar="DATA", help="file of examples that were not trained on")
    parser.add_argument("--references", metavar="COLUMN", help="column with the right answer, or a list of them")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N rows")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    from afina.jobs.evaluate import evaluate
    from afina.jobs.runs import adapter_folder
    from afina.ui.display import Display, show_result

    with Display() as display:
        result = evaluate(
            options.run,
            options.data,
            references=options.references,
            limit=options.limit,
            listener=display,
            **opening(options),
        )
    if options.json:
        say(json.dumps(result.json(), ensure_ascii=False))
    else:
        files = {"adapter": adapter_folder(options.run), "report": options.run / "report.html"}
        with writing("standard output"):
            show_result(result.json(), {name: path for name, path in files.items() if path.exists()})
    return 0
