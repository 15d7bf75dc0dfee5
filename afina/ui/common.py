"""What the commands share in showing results."""

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from afina.core.config import Settings, given, typed
from afina.core.text import command_line, shell_word
from afina.ui.output import Output

_WIDEST = 160
_NO_EDGE = 1000


@dataclass(frozen=True)
class View:
    """How a job's result is shown: `show(settings, result)` prints it for a person; with `json` there is --json."""

    show: Callable[[Any, Any], None]
    json: bool = True
    exit_code: Callable[[Any], int] = lambda result: 0


def console(whole_lines: bool = False) -> Output:
    """Standard output; with `whole_lines` a file gets a table's lines unbroken, however long."""
    found = Output(sys.stdout)
    if whole_lines and not found.is_terminal:
        found.width = _NO_EDGE
    return found


def wide_console() -> Output:
    """Standard output where a table too wide for a terminal is better than one of broken words."""
    found = console()
    found.width = max(found.width, _WIDEST)
    return found


def plain_table(title: str | None = None) -> Table:
    """A table without lines."""
    return Table(title=title, title_justify="left", box=None, pad_edge=False)


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def in_words(key: str) -> str:
    """A key of JSON as people read it: 'size_mb' is 'size, MB'; a setting's name, such as 'lora.eva_rho', as it is."""
    return key if "." in key else re.sub(r" (mb|gb)$", lambda unit: f", {unit[1].upper()}", key.replace("_", " "))


def show_facts(facts: dict[str, Any], width: int) -> None:
    """Prints `key value` lines, without what is empty."""
    for key, value in facts.items():
        if value not in (None, [], {}, ()):
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else shown(value)
            print(f"{in_words(key):{width}} {text}")


def size(parameters: int) -> str:
    """135 M, 7.6 B."""
    return f"{parameters / 1e9:.1f} B" if parameters >= 999.5e6 else f"{parameters / 1e6:.0f} M"


def two_digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def train_command(data: Path | str, flags: Iterable[str], base: str) -> str:
    """The command that trains with these settings, as they are typed, but for those that it names itself."""
    own = [each for each in flags if each.split()[0] not in ("--base", "--out")]
    return " ".join([command_line("train", data), *own, f"--base {shell_word(base)}"])


def flags_of(settings: Settings) -> list[str]:
    """The flags that were given, as they are typed."""
    return [text for info, value in given(settings) if info.flags and (text := typed(info, value))]
