"""From what settings name to rows, one after another: nothing of a file is kept once its rows were passed on."""

import atexit
import itertools
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from afina.core.errors import DataError, NoTable, writing
from afina.core.events import Listener, ignore
from afina.core.files import check_fetched
from afina.core.limits import MOST_REJECTED
from afina.data.files import COMPRESSED, STANDARD_INPUT, File
from afina.data.files.folders import FileSet, divided, file_set
from afina.data.formats import FORMATS, Format, suffixes
from afina.data.formats._classes import ClassNames
from afina.data.rows import Notes, Record, Rejected
from afina.data.settings import DataSettings

_NO_TABLES = {  # what files begin with that are called like data, and are none
    rb"\x89PNG\r\n": "a PNG picture",
    rb"\xff\xd8\xff": "a JPEG picture",
    rb"GIF8[79]a": "a GIF picture",
    rb"RIFF....WEBP": "a WebP picture",
    rb"RIFF....(?:WAVE|AVI )|\x00\x00..ftyp|OggS\x00|ID3[\x02-\x04]\x00": "a recording",
    rb"%PDF-": "a PDF document",
    rb"\{\\rtf": "an RTF document",
    rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "a file of an old Office, such as .xls or .doc",
    rb"SQLite format 3\x00": "an SQLite database",
    rb"\x7fELF|\xcf\xfa\xed\xfe": "a program",
    rb"7z\xbc\xaf\x27\x1c|Rar!\x1a\x07": "an archive",
}
_UNNAMED = "csv"  # what standard input is, where it looks like nothing else


def read(settings: DataSettings, notes: Notes, files: "OpenFiles | None" = None) -> Iterator[Record | Rejected]:
    """Every row of the data: a record, or rejected with its reason. What is found out about the files goes into
    `notes`.

    `files` are those that were opened before. Raises `DataError` where a file cannot be read at all: it is absent,
    damaged, binary, of no known format, or in doubtful encoding (unless `notes` collect doubts)."""
    opened = files or OpenFiles()
    found = opened.of(settings)
    notes.say(*opened.notes(settings.path))
    for form, file in found:
        if form.package and find_spec(form.package[0]) is None:
            package, extra = form.package
            raise DataError(
                f"data {file.name}: the format {form.name!r} needs the package {package!r}, which is missing",
                f"check the path, or install it: pip install 'afina[{extra}]'",
            )
        named = ClassNames(file, settings.path, notes)
        yield from _usable(form.read(file, settings, notes), file, named)
        if settings.encoding and not file.is_decided:
            notes.say(f"{file.name} is no text: --data.encoding is not used")


def _usable(rows: Iterator[Record | Rejected], file: File, named: ClassNames) -> Iterator[Record | Rejected]:
    """The rows. Raises `DataError` where those that a file begins with are all rejected: then it is not what it seems,
    and millions more would be rejected one by one."""
    for rejected, row in enumerate(rows, 1):
        if isinstance(row, Record):
            yield named(row)
            break
        if rejected == MOST_REJECTED:
            raise DataError(
                f"{file.name}: none of its first {MOST_REJECTED:,} rows can be used; of the last, {row.reason}",
                "check what the file is",
            )
        yield row
    for row in rows:
        yield named(row) if isinstance(row, Record) else row


class OpenFiles:
    """The files that one piece of work reads, each opened once, by the paths that settings name. `expected` is the
    encoding of those that are neither marked nor UTF-8, where that is known; `listener` hears how far a long reading
    is."""

    def __init__(self, expected: str | None = None, listener: Listener = ignore) -> None:
        self._expected, self._listener = expected, listener
        self._found: dict[Path, list[tuple[Format, File]]] = {}
        self._notes: dict[Path, list[str]] = {}

    def of(self, settings: DataSettings) -> list[tuple[Format, File]]:
        """The files of `settings.path`, each with its format. Raises `DataError`."""
        claimed = next((each for each in FORMATS if each.claims(settings)), None)
        if claimed is None:
            return self._at(settings.path, settings.encoding)
        if not claimed.local:
            return [(claimed, File(settings.path))]
        files = [file for _, file in self._at(settings.path, settings.encoding)]
        if settings.target is not None:
            files = files[:1]
            files[0].target = self._at(settings.target, settings.encoding)[0][1]
        return [(claimed, file) for file in files]

    def notes(self, path: Path) -> list[str]:
        """What was found out about a set of files."""
        return self._notes.get(path, [])

    def quiet(self) -> None:
        """The listener hears no more of reading."""
        self._listener = ignore
        for _, file in itertools.chain(*self._found.values()):
            file.listener = ignore

    def fingerprint(self, settings: DataSettings) -> list[list[list[str]]] | None:
        """Of every path that `settings` name: the name and SHA-256 of its files; None where the content of one cannot
        be known without reading it as rows."""
        paths = (settings.path, settings.target, settings.eval_path, settings.test_path)
        given = [path for path in paths if path is not None]
        if any(not each.local and each.claims(DataSettings(path=path)) for path in given for each in FORMATS):
            return None
        return [[[file.name, file.sha256] for _, file in self._at(path, settings.encoding)] for path in given]

    @property
    def encoding(self) -> str | None:
        """What all text files that were read are to be read as again, where it was guessed."""
        found = [file.encoding for files in self._found.values() for _, file in files if file.is_decided]
        names = {each.name for each in found if each.name != "ascii"}
        guessed = all(each.guessed and each.errors == "strict" for each in found if each.name != "ascii")
        return names.pop() if len(names) == 1 and guessed else None

    def _at(self, path: Path, encoding: str | None) -> list[tuple[Format, File]]:
        if path not in self._found:
            self._found[path] = self._located(path, encoding)
        return self._found[path]

    def _located(self, path: Path, encoding: str | None) -> list[tuple[Format, File]]:
        """The files that `path` means: itself, those of a set or a part of it in order of name, or standard input
        ('-'). Raises `DataError`."""

        def opened(file: Path, name: str | None = None, features: Any = None) -> File:
            return File(file, name, given=encoding, expected=self._expected, features=features, listener=self._listener)

        if str(path) == STANDARD_INPUT:
            known, kept = _standard_input()
            return [(known, opened(kept, "standard input"))]
        if divided(path) is not None:
            found, part = file_set(path, suffixes())
            paths = found.named(part)
            self._notes[path] = [*found.notes, *found.links(paths), *_unread(found, path, part, paths)]
            check_fetched(paths, DataError)
            files = [opened(file, features=found.features.get(file)) for file in paths]
            return [(form, file) for file in files if (form := _format_of(file))]
        _check_file(path)
        file = opened(path)
        form = _format_of(file)
        if form is None:
            problem = f"type {file.suffix!r} is not read" if file.suffix else "it has no suffix, so its type is unknown"
            raise DataError(
                f"data {path}: {problem}",
                f"give one of {', '.join(suffixes())}, as it is or with {', '.join(COMPRESSED)}",
            )
        return [(form, file)]


def _check_file(path: Path) -> None:
    """Raises `DataError` where `path` is no file that is there."""
    if not path.exists():
        raise DataError(f"data {path}: no such file", "check the path")
    if not path.is_file():
        raise DataError(f"data {path} is not a regular file", "write the examples to a file first, or pipe them to '-'")
    check_fetched([path], DataError)


def _unread(found: FileSet, path: Path, part: str, files: list[Path]) -> list[str]:
    """What is said where a set of files has more than is read of it."""
    lines = []
    if not part and len(found.splits) > 1:
        lines.append(f"{path}: one of its parts is read ({found.shown(files)}); {found.listed()} name one each")
    if found.others:
        lines.append(f"{found.root}: not read, for they belong to no part: {found.shown(found.others)}")
    return lines


def _format_of(file: File) -> Format | None:
    """By the file's first bytes where these are a format's own, else by its suffix. Raises `NoTable` where they are
    those of something else."""
    start = file.start()
    if what := next((what for mark, what in _NO_TABLES.items() if re.match(mark, start, re.DOTALL)), None):
        raise NoTable(
            f"data {file.name} is {what}, not a table of examples",
            "give the table itself, as CSV or .xlsx for instance",
        )
    by_bytes = (each for each in FORMATS if each.signature(start, file.suffix))
    by_suffix = (each for each in FORMATS if file.suffix in (*each.suffixes, *each.named_suffixes))
    return next(by_bytes, None) or next(by_suffix, None)


_standard_inputs: dict[int, tuple[Format, Path]] = {}  # what came in is kept: it comes once, and is read more than once


def _standard_input() -> tuple[Format, Path]:
    """What comes in, kept in a file for as long as the program runs, and its format."""
    key = id(sys.stdin)
    if key not in _standard_inputs:
        folder = Path(tempfile.mkdtemp(prefix="afina-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        path = folder / "standard-input"
        with writing(path, "set TMPDIR to a folder with more space, or give a file"), path.open("wb") as written:
            shutil.copyfileobj(sys.stdin.buffer, written)
        file = File(path)
        start = file.start().removeprefix(b"\xef\xbb\xbf").lstrip()
        resembling = (each for each in FORMATS if each.resembles(start))
        _standard_inputs[key] = _format_of(file) or next(resembling, None) or FORMATS[_UNNAMED], path
    return _standard_inputs[key]
