"""Input formats: from one file to its rows, a module for each format; to add a format is to add a module with a
`FORMAT`.

Comes in: a `File`, opened once, with the user's `DataSettings`. Goes out: a `Record` (columns by name) or a `Rejected`
row with its reason, one after another, each with its location; what was found out about the file goes into `Notes`.
Public: `Format` (what a module declares), `FORMATS` (the table), `suffixes`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from afina.core.registry import Registry
from afina.data.rows import Notes, Record, Rejected
from afina.data.settings import DataSettings

if TYPE_CHECKING:
    from afina.data.files import File


@dataclass(frozen=True)
class Format:
    """How files of one format are recognised, and how they are read.

    `read` gives every row, and raises `DataError` where the file as a whole cannot be read. `suffixes` are those of its
    files, in a folder too; `named_suffixes` only of a file that is named itself (a README.md in a folder of data is not
    data). `signature` says whether a file's first bytes are the format's own, whatever its suffix; `resembles` whether
    standard input, which has no suffix, is probably of it. `claims` takes all that settings name, without a look at any
    file. `package` is what reading needs and Afina does not (its module, and the extra that brings it). Data that are
    not `local` have no content that could be known beforehand."""

    name: str
    read: Callable[["File", DataSettings, Notes], Iterator[Record | Rejected]]
    suffixes: tuple[str, ...] = ()
    named_suffixes: tuple[str, ...] = ()
    signature: Callable[[bytes, str], bool] = lambda start, suffix: False
    resembles: Callable[[bytes], bool] = lambda start: False
    claims: Callable[[DataSettings], bool] = lambda settings: False
    package: tuple[str, str] | None = None
    local: bool = True


FORMATS: Registry[Format] = Registry("afina.data.formats", "FORMAT", "input format")


def suffixes() -> tuple[str, ...]:
    """The suffixes of all formats."""
    return tuple(suffix for each in FORMATS for suffix in each.suffixes)
