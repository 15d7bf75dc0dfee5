"""`afina models`."""

import argparse
import json
from pathlib import Path
from typing import Any

from afina.core.errors import SettingsError
from afina.ui.common import say


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action", choices=["list", "show", "pull"], help="the catalogue, the facts of a model, or a download"
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="catalogue name, hub id, folder or .gguf file")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub model")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="where downloaded models are kept")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from afina.base.catalogue import CATALOGUE

    if options.action == "list":
        if options.name:
            raise SettingsError(
                f"afina models list takes no name, {options.name!r} was given", "afina models show NAME"
            )
        if options.json:
            say(json.dumps({name: asdict(entry) for name, entry in CATALOGUE.items()}))
            return 0
        for entry in CATALOGUE.values():
            say(
                f"{entry.name:10} {entry.title}: {entry.parameters / 1e6:.0f} M parameters, {entry.size_mb} MB, {entry.licence}"
            )
        return 0
    if not options.name:
        raise SettingsError(f"afina models {options.action} needs a NAME", "`afina models list` shows the catalogue")
    if options.action == "show" and options.name in CATALOGUE and not options.revision:
        card: dict[str, Any] = asdict(CATALOGUE[options.name])
    else:
        from afina.base.load import describe

        card = describe(options.name, revision=options.revision, cache_dir=options.cache_dir).card()
    if options.json:
        say(json.dumps(card))
        return 0
    for key, value in card.items():
        if value is not None:
            shown = f"{value:,}" if isinstance(value, int) else ", ".join(value) if isinstance(value, tuple) else value
            say(f"{key.replace('_', ' '):15} {shown}")
    return 0
