"""`afina generate`."""

import argparse
import json
import sys
from pathlib import Path

from afina.core.errors import OutputError, SettingsError
from afina.ui.common import opening, run_flags, say


def flags(parser: argparse.ArgumentParser) -> None:
    run_flags(parser)
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the user's turn, word for word")
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="answer every row of a file, through the run's prompt template"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the answers as JSONL instead of printing them")
    parser.add_argument("--overwrite", action="store_true", help="replace the file given with --out")
    parser.add_argument("--base-too", action="store_true", help="the base's answer beside the adapted model's")


def run(options: argparse.Namespace) -> int:
    if (options.prompt is None) == (options.data is None):
        raise SettingsError("afina generate takes either PROMPT or --data FILE", "give one of them")
    if options.prompt is not None and not options.prompt.strip():
        raise SettingsError("PROMPT is empty", "give a question")
    from afina.core.files import check_writable, write_jsonl

    if options.out:
        check_writable(options.out)
        if options.data and options.out.exists() and options.data.exists() and options.out.samefile(options.data):
            raise OutputError(f"--out {options.out} is the file of --data itself", "choose another --out")
        if options.out.is_file() and not options.overwrite:
            raise OutputError(
                f"--out {options.out} exists already", "choose another --out, or replace it with --overwrite"
            )
    from afina.jobs.generate import generate
    from afina.ui.display import Display

    with Display() as display:
        rows = generate(
            options.run,
            options.data or [options.prompt],
            base_too=options.base_too,
            listener=display,
            **opening(options),
        )
    if options.out:
        write_jsonl(options.out, rows)
        print(f"{len(rows)} answers in {options.out}", file=sys.stderr)
    elif options.data:
        for row in rows:
            say(json.dumps(row, ensure_ascii=False))
    elif options.base_too:
        say(f"base:    {rows[0]['base']}\nadapted: {rows[0]['answer']}")
    else:
        say(rows[0]["answer"])
    return 0
