"""`afina tune`."""

import argparse
import json

from afina.core.errors import writing
from afina.ui.common import positive, positive_number, run_settings, say, settings_flags

# What the search decides, or has no use for.
_LEFT_OUT = ("method", "last_layers", "adapter", "force", "overwrite", "train.learning_rate", "train.tokens_per_batch")


def flags(parser: argparse.ArgumentParser) -> None:
    parser.usage = "afina tune DATA (--minutes M | --trials N) [--workers N] [--out DIR] [--json] [flags of train]"
    parser.add_argument(
        "--minutes",
        type=positive_number,
        metavar="M",
        help="about so many in all: half for the search, half for proving what it found",
    )
    parser.add_argument("--trials", type=positive, metavar="N", help="so many trials, however long they take")
    parser.add_argument("--workers", type=positive, default=1, metavar="N", help="processes that try at one time [1]")
    parser.add_argument(
        "--ray",
        action="store_true",
        help="the workers are trials of Ray Tune, on its cluster (pip install 'afina[ray]')",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    settings_flags(parser, _LEFT_OUT)


def run(options: argparse.Namespace) -> int:
    from afina.jobs.tune import Effort, tune
    from afina.ui.display import Display, show_tuning

    settings = run_settings(options)
    effort = Effort(options.minutes, options.trials, options.workers, options.ray)
    with Display() as display:
        found = tune(settings, effort, display)
    if options.json:
        say(json.dumps(found.json(), ensure_ascii=False))
    else:
        with writing("standard output"):
            show_tuning(found.json(), found.folder)
    return 0
