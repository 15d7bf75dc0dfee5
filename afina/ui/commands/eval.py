"""`afina eval`."""

import argparse
import json
from pathlib import Path

from afina.core.errors import SettingsError, writing
from afina.ui.common import opening, positive, run_flags, say


def flags(parser: argparse.ArgumentParser) -> None:
    run_flags(parser)
    parser.add_argument("data", type=Path, metavar="DATA", help="file of examples that were not trained on")
    parser.add_argument("--references", metavar="COLUMN", help="column with the right answer, or a list of them")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N rows")
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="FILE.py:NAME",
        help="a metric of your own: NAME(answer, references) → number, once a row",
    )
    parser.add_argument(
        "--judge",
        metavar="URL",
        help="let a model behind an OpenAI-compatible address compare the answers (sends it the rows)",
    )
    parser.add_argument(
        "--judge-model",
        metavar="NAME",
        help="the judge's name there; its key is read from AFINA_JUDGE_KEY or OPENAI_API_KEY",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    if bool(options.judge) != bool(options.judge_model):
        raise SettingsError("--judge and --judge-model belong together", "give both: an address and a model's name")
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
            metrics=options.metric,
            judge=(options.judge, options.judge_model) if options.judge else None,
            **opening(options),
        )
    if options.json:
        say(json.dumps(result.json(), ensure_ascii=False))
    else:
        files = {"adapter": adapter_folder(options.run), "report": options.run / "report.html"}
        with writing("standard output"):
            show_result(result.json(), {name: path for name, path in files.items() if path.exists()})
    return 0
