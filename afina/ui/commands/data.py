"""`afina data`."""

import argparse
import json
from pathlib import Path
from typing import Any

from afina.core.errors import writing
from afina.ui.common import positive, say, setting_flag

_ACTIONS = {
    "check": "what a careful person would find in FILE; exits with 0 ready, 1 not ready, 2 unreadable",
    "show": "a row of FILE as the model sees it: its tokens, the learned ones in colour",
    "prepare": "FILE cleaned, without copies, split so that near copies stay on one side",
}
_READING = ("prompt", "completion", "map", "system", "references", "target", "text")
_FLAGS = {
    "check": (*_READING, "learn", "kind", "eval_path", "max_length"),
    "show": (*_READING, "learn"),
    "prepare": _READING,
}


def flags(parser: argparse.ArgumentParser) -> None:
    parser.usage = "afina data check|show|prepare FILE [flags]"
    parser.epilog = "flags of each: afina data check --help"
    actions = parser.add_subparsers(
        prog="afina data", dest="action", metavar="ACTION", required=True, parser_class=type(parser)
    )
    for name, summary in _ACTIONS.items():
        action = actions.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        action.usage = f"afina data {name} FILE [--prompt TEXT] [--completion TEXT] [flags]"
        action.add_argument("file", metavar="FILE", help="file or folder of examples, - for standard input")
        _own_flags(action, name)


def _own_flags(parser: argparse.ArgumentParser, action: str) -> None:
    from afina.core.config import fields
    from afina.data.quality.preparation import PrepareSettings
    from afina.data.settings import DataSettings

    if action == "prepare":
        parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="new folder to write to")
    else:
        parser.add_argument("--base", default="starter", metavar="BASE", help="whose tokenizer counts [starter]")
        parser.add_argument(
            "--cache-dir",
            type=Path,
            metavar="DIR",
            help="where downloaded models are kept [$AFINA_CACHE, else the user's cache folder]",
        )
        parser.add_argument("--html", type=Path, metavar="FILE", help="a page with plots as well")
    if action == "check":
        parser.add_argument("--json", action="store_true", help="print one JSON object")
    if action == "show":
        parser.add_argument("--row", type=positive, default=1, metavar="N", help="number of the row [1]")
    for field in fields(DataSettings):
        if field.path in _FLAGS[action]:
            own = [flag for flag in field.flags if not flag.startswith("--data.")] or [f"--{field.path}"]
            setting_flag(parser, field, own[-1:], f"data.{field.path}")
    if action == "prepare":
        for field in fields(PrepareSettings):
            setting_flag(parser, field, [f"--{field.path}"], f"prepare.{field.path}")


def run(options: argparse.Namespace) -> int:
    from afina.core.config import build
    from afina.data.quality.preparation import PrepareSettings
    from afina.data.settings import DataSettings
    from afina.jobs.data import check_data, following, prepare_data, show_row
    from afina.ui.display import show_check, show_tokens

    given = vars(options)
    settings = build(DataSettings, {"path": options.file, **_section(given, "data.")})
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
    how = build(PrepareSettings, _section(given, "prepare."))
    result = prepare_data(settings, how, options.out)
    for what, n in result.done.items():
        say(f"{n} rows {what}")
    for part, rows in (("train", result.train), ("test", result.test)):
        if rows:
            say(f"{len(rows)} rows in {options.out / part}.{how.format}")
    return 0


def _section(given: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
