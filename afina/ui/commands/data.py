"""`afina data`."""

import argparse
import json
from pathlib import Path
from typing import Any

from afina.core.errors import SettingsError, writing
from afina.ui.common import positive, say


def flags(parser: argparse.ArgumentParser) -> None:
    from afina.core.config import fields
    from afina.data.prepare import PrepareSettings
    from afina.data.settings import DataSettings

    parser.usage = "afina data check|show|prepare FILE [--prompt TEXT] [--completion TEXT] [flags]"
    parser.add_argument(
        "action",
        choices=["check", "show", "prepare"],
        help="what is in it; a row as the model sees it; clean and split",
    )
    parser.add_argument("file", metavar="FILE", help="file or folder of examples, - for standard input")
    parser.add_argument("--base", default="starter", metavar="BASE", help="whose tokenizer counts [starter]")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="where downloaded models are kept")
    parser.add_argument("--html", type=Path, metavar="FILE", help="check, show: a page with plots as well")
    parser.add_argument("--json", action="store_true", help="check: print one JSON object")
    parser.add_argument("--row", type=positive, default=1, metavar="N", help="show: number of the row [1]")
    parser.add_argument("--out", type=Path, metavar="DIR", help="prepare: folder to write to")
    wanted = {"prompt", "completion", "system", "references", "eval_path", "max_length", "target", "text"}
    for field in fields(DataSettings):
        if field.path in wanted:
            own = [flag for flag in field.flags if not flag.startswith("--data.")] or [f"--{field.path}"]
            parser.add_argument(
                *own,
                dest=f"data.{field.path}",
                default=argparse.SUPPRESS,
                metavar=field.path.upper(),
                help=field.help.replace("%", "%%"),
            )
    group = parser.add_argument_group("prepare")
    for field in fields(PrepareSettings):
        options: dict[str, Any] = {"action": "store_true"} if field.switch else {"metavar": field.path.upper()}
        group.add_argument(
            f"--{field.path}",
            dest=f"prepare.{field.path}",
            default=argparse.SUPPRESS,
            help=field.help.replace("%", "%%"),
            **options,
        )


def run(options: argparse.Namespace) -> int:
    from afina.core.config import build
    from afina.data.prepare import PrepareSettings
    from afina.data.settings import DataSettings
    from afina.jobs.data import check_data, following, prepare_data, show_row
    from afina.ui.display import show_check, show_tokens

    given = vars(options)
    settings = build(DataSettings, {"path": options.file, **_section(given, "data.")})
    how = _section(given, "prepare.")
    if how and options.action != "prepare":
        raise SettingsError(f"--{next(iter(how))} is read by `afina data prepare` only", "leave it out")
    if options.action == "check":
        found = check_data(settings, base=options.base, page=options.html, cache_dir=options.cache_dir)
        if options.json:
            say(json.dumps(found.json(), ensure_ascii=False))
        else:
            with writing("standard output"):
                show_check(found, following(found, settings))
        return 0 if found.ready else 1
    if options.action == "show":
        row = show_row(settings, options.row, base=options.base, page=options.html, cache_dir=options.cache_dir)
        with writing("standard output"):
            show_tokens(row)
        return 0
    if not options.out:
        raise SettingsError("afina data prepare needs --out DIR", "give a new folder")
    result = prepare_data(settings, build(PrepareSettings, how), options.out)
    for what, n in result.done.items():
        say(f"{n} rows {what}")
    say(
        f"{len(result.train)} rows in {options.out / 'train.jsonl'}, {len(result.test)} in {options.out / 'test.jsonl'}"
    )
    return 0


def _section(given: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
