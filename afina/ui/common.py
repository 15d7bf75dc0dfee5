"""What several commands share."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afina.core.errors import writing


def run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that `afina train` wrote, or an adapter's folder")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, mps; by default the best that is there")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="where downloaded models are kept")
    parser.add_argument("--base", metavar="BASE", help="the base, where it is not where it was in training")
    parser.add_argument("--force", action="store_true", help="take a base that the adapter was not made for")


def opening(options: argparse.Namespace) -> dict[str, Any]:
    """What `run_flags` say of how a run is opened, as the functions of jobs take it."""
    return {name: getattr(options, name) for name in ("device", "cache_dir", "base", "force")}


def setting_flag(group: Any, field: Any, names: Sequence[str], dest: str) -> None:
    """Adds a setting (`FieldInfo`) to a parser or a group of its flags; nothing is set where the flag is not given."""
    default = "" if field.default in (None, (), {}) or field.switch else f" [{field.default}]"
    if field.choices:
        default = f" One of {', '.join(field.choices)}.{default}"
    options: dict[str, Any] = (
        {"action": "store_true"} if field.switch else {"metavar": field.path.rpartition(".")[2].upper()}
    )
    text = f"{field.help}{default}".replace("%", "%%")
    group.add_argument(*names, dest=dest, default=argparse.SUPPRESS, help=text, **options)


def say(text: str) -> None:
    with writing("standard output"):
        print(text)


def positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value
