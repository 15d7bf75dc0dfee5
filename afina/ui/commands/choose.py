"""`afina choose`."""

import argparse
import json

from afina.core.errors import writing
from afina.ui.common import given_settings, positive_number, run_settings, say, settings_flags

_LEFT_OUT = (
    "base", "revision", "task", "method", "last_layers", "adapter", "force", "overwrite", "quantize", "template", "track", "allow_swap",
)  # fmt: skip


def flags(parser: argparse.ArgumentParser) -> None:
    parser.usage = "afina choose DATA [--minutes M] [--bases LIST] [--license commercial] [--download] [--out DIR] [--json] [flags of train]"
    parser.add_argument(
        "--minutes", type=positive_number, default=30.0, metavar="M", help="about so many for trying bases, in all [30]"
    )
    parser.add_argument(
        "--bases",
        metavar="LIST",
        help="try these, with commas between: names, hub ids (fetched where they are not here), folders; by default the catalogue's",
    )
    parser.add_argument("--license", metavar="WHICH", help="`commercial`: only bases that may be used so")
    parser.add_argument(
        "--download", action="store_true", help="also fetch and try the four most promising that are not on this disk"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    settings_flags(parser, _LEFT_OUT)


def run(options: argparse.Namespace) -> int:
    from afina.jobs.choose import choose
    from afina.ui.display import Display
    from afina.ui.tables import show_choice

    settings = run_settings(options)
    bases = None if options.bases is None else [name.strip() for name in options.bases.split(",") if name.strip()]
    with Display() as display:
        found = choose(settings, options.minutes, bases, options.license, options.download, display)
    if options.json:
        say(json.dumps(found.json(), ensure_ascii=False))
        return 0
    with writing("standard output"):
        show_choice(found, options.data or str(settings.data.path), given_settings(options))
    return 0
