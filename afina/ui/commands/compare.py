"""`afina compare`."""

import argparse
import json

from afina.core.errors import writing
from afina.ui.common import positive, positive_number, run_settings, say, settings_flags

# What a comparison decides for itself.
_LEFT_OUT = ("method", "adapter", "force", "overwrite", "quantize", "train.learning_rate", "train.early_stopping")


def flags(parser: argparse.ArgumentParser) -> None:
    parser.usage = "afina compare DATA [--methods LIST] [--epochs E | --minutes M] [--seeds N] [--out DIR] [--json] [flags of train]"
    parser.add_argument(
        "--methods", metavar="LIST", help="of base,few-shot,head,last-k,lora,full and bias; by default the first six"
    )
    parser.add_argument(
        "--minutes",
        type=positive_number,
        metavar="M",
        help="train each method for M minutes at its own pace, instead of --epochs",
    )
    parser.add_argument(
        "--seeds", type=positive, default=1, metavar="N", help="trainings of each method, with different seeds [1]"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    settings_flags(parser, _LEFT_OUT)


def run(options: argparse.Namespace) -> int:
    from afina.core.errors import SettingsError
    from afina.jobs.compare import METHODS, Budget, compare
    from afina.ui.display import Display, show_comparison

    settings = run_settings(options)
    if options.minutes and (settings.train.epochs or settings.train.rows):
        raise SettingsError("--minutes and --epochs exclude each other", "give one of them")
    methods = (
        METHODS if options.methods is None else [name.strip() for name in options.methods.split(",") if name.strip()]
    )
    with Display() as display:
        found = compare(settings, methods, Budget(options.minutes, options.seeds), display)
    if options.json:
        say(json.dumps(found.json(), ensure_ascii=False))
    else:
        with writing("standard output"):
            show_comparison(found.json(), found.folder)
    return 0
