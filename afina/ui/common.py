"""What several commands share."""

import argparse
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afina.core.errors import SettingsError, writing

if TYPE_CHECKING:
    from afina.settings import RunSettings


def run_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that `afina train` wrote, or an adapter's folder")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, mps; by default the best that is there")
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="where downloaded models are kept [$AFINA_CACHE, else the user's cache folder]",
    )
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


def settings_flags(parser: argparse.ArgumentParser, leave_out: Sequence[str] = ()) -> None:
    """Adds DATA, --config and a flag for every setting of a run, but for those of `leave_out` (dotted paths)."""
    from afina.core.config import fields
    from afina.settings import RunSettings

    parser.add_argument("data", nargs="?", metavar="DATA", help="file of examples: JSONL, CSV, Parquet, text and more")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings; flags override it")
    groups: dict[str, Any] = {"": parser.add_argument_group("run")}
    for field in fields(RunSettings):
        if field.path == "data.path" or field.path in leave_out:
            continue
        section = field.path.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        setting_flag(groups[section], field, field.flags[::-1], field.path)


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that `settings_flags` found on the command line, by dotted path."""
    import yaml

    from afina.core.config import fields
    from afina.settings import RunSettings

    given = vars(options)
    values: dict[str, Any] = {}
    for field in fields(RunSettings):
        if field.path in given:
            value = given[field.path]
            if isinstance(value, str) and not field.text:
                with suppress(yaml.YAMLError):  # the settings then say what is wrong with the text
                    value = yaml.safe_load(value)
            values[field.path] = value
    if options.data is not None:
        values["data.path"] = options.data
    return values


def run_settings(options: argparse.Namespace) -> "RunSettings":
    """The settings of the command line over those of --config. Raises `SettingsError`."""
    from afina.core.config import build, merge, nest, read_yaml
    from afina.settings import RunSettings

    tree = merge(read_yaml(options.config) if options.config else {}, nest(given_settings(options)))
    if not isinstance(tree.get("data"), dict) or "path" not in tree["data"]:
        raise SettingsError(
            "no DATA was given", f"afina {options.command} DATA: a file of examples (.jsonl, .csv and more)"
        )
    return build(RunSettings, tree)


def say(text: str) -> None:
    with writing("standard output"):
        print(text)


def size(parameters: int) -> str:
    """135 M, 7.6 B."""
    return f"{parameters / 1e9:.1f} B" if parameters >= 999.5e6 else f"{parameters / 1e6:.0f} M"


def positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value
