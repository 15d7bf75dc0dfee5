"""`afina eval`."""

import argparse
import json
from pathlib import Path
from typing import Any

from afina.core.errors import SettingsError, writing
from afina.ui.common import opening, positive, run_flags, say


def flags(parser: argparse.ArgumentParser) -> None:
    parser.usage = "afina eval RUN DATA [flags] | afina eval RUN --tasks NAME,NAME [--chat] [--limit N]"
    run_flags(parser)
    parser.add_argument("data", nargs="?", type=Path, metavar="DATA", help="file of examples that were not trained on")
    parser.add_argument("--references", metavar="COLUMN", help="column with the right answer, or a list of them")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N rows")
    parser.add_argument(
        "--metric", action="append", metavar="FILE.py:NAME",
        help="a metric of your own: NAME(answer, references) gives a number, once a row",
    )  # fmt: skip
    parser.add_argument(
        "--judge", metavar="URL",
        help="let a model behind an OpenAI-compatible address compare the answers (it is sent the rows)",
    )  # fmt: skip
    parser.add_argument(
        "--judge-model", metavar="NAME",
        help="the judge's name there; its key is read from AFINA_JUDGE_KEY or OPENAI_API_KEY",
    )  # fmt: skip
    parser.add_argument(
        "--tasks", metavar="LIST", help="tasks of lm-evaluation-harness instead of DATA (pip install 'afina[lm-eval]')"
    )
    parser.add_argument("--chat", action="store_true", help="with --tasks: put the chat template around each question")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    if (options.data is None) == (options.tasks is None):
        wrong = "there is nothing to evaluate on" if options.data is None else "DATA and --tasks exclude each other"
        raise SettingsError(wrong, "afina eval RUN DATA, or afina eval RUN --tasks NAME")
    return _on_data(options) if options.data else _on_tasks(options)


def _on_data(options: argparse.Namespace) -> int:
    if options.chat:
        raise SettingsError("--chat is read with --tasks only: your own rows are always asked as in training")
    if bool(options.judge) != bool(options.judge_model):
        raise SettingsError("--judge and --judge-model belong together", "give both: an address and a model's name")
    from afina.jobs.evaluate import evaluate
    from afina.runs.facts import adapter_folder
    from afina.ui.display import Display, show_result

    with Display() as display:
        result = evaluate(
            options.run,
            options.data,
            references=options.references,
            limit=options.limit,
            listener=display,
            metrics=options.metric or (),
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


def _on_tasks(options: argparse.Namespace) -> int:
    given: dict[str, Any] = {name: getattr(options, name) for name in ("references", "metric", "judge", "judge_model")}
    for name, value in given.items():
        if value:
            raise SettingsError(
                f"--{name.replace('_', '-')} is for rows of your own, and --tasks bring theirs", "leave it out"
            )
    from afina.jobs.harness import harness
    from afina.ui.display import Display, show_tasks

    with Display() as display:
        found = harness(
            options.run, [name.strip() for name in options.tasks.split(",") if name.strip()],
            limit=options.limit, chat=options.chat, listener=display, **opening(options),
        )  # fmt: skip
    if options.json:
        say(json.dumps(found, ensure_ascii=False))
    else:
        with writing("standard output"):
            show_tasks(found)
    return 0
