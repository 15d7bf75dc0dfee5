"""`afina fit`."""

import argparse
import json

from afina.core.errors import SettingsError, near, writing
from afina.ui.common import given_settings, run_settings, say, settings_flags

_LEFT_OUT = ("base", "method", "last_layers", "device", "out", "overwrite", "adapter", "force", "track", "allow_swap")


def flags(parser: argparse.ArgumentParser) -> None:
    parser.usage = "afina fit BASE [DATA] [--method lora|qlora|full|head] [--device DEVICE] [--json] [flags of train]"
    parser.add_argument("base", metavar="BASE", help="name of `afina models list`, hub id, folder or .gguf file")
    parser.add_argument(
        "--method", dest="only", metavar="METHOD", help="only this: lora, qlora, full or head [all four]"
    )
    parser.add_argument(
        "--device",
        dest="machine",
        metavar="DEVICE",
        help="only there: cpu, cuda, mps, or a machine by name (24gb, 80gb, laptop) [this machine, then those]",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    settings_flags(parser, _LEFT_OUT)


def run(options: argparse.Namespace) -> int:
    from afina.jobs.fit import METHODS, NO_DATA, fit
    from afina.ui.display import Display
    from afina.ui.tables import show_fit

    if options.only and options.only not in METHODS:
        raise SettingsError(
            f"--method {options.only!r} is no method.{near(options.only, METHODS)}",
            f"it takes {', '.join(METHODS)}",
        )
    options.data = options.data or str(NO_DATA)
    settings = run_settings(options)
    with Display() as display:
        found = fit(settings, (options.only,) if options.only else METHODS, options.machine, display)
    if options.json:
        say(json.dumps(found.json(), ensure_ascii=False))
    else:
        with writing("standard output"):
            show_fit(found, "DATA" if settings.data.path == NO_DATA else options.data, given_settings(options))
    return 0
