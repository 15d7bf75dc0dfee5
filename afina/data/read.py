"""From what settings name to rows, one after another: nothing of a file is kept once its rows were passed on."""

import atexit
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from afina.core.errors import DataError
from afina.core.files import check_fetched, leads_out
from afina.data.files import COMPRESSED, STANDARD_INPUT, File
from afina.data.formats import FORMATS, Format, suffixes
from afina.data.rows import Notes, Record, Rejected
from afina.data.settings import DataSettings

_UNNAMED = "csv"  # what standard input is, where it looks like nothing else


def read(settings: DataSettings, notes: Notes, files: "OpenFiles | None" = None) -> Iterator[Record | Rejected]:
    """Every row of the data: a record, or rejected with its reason. What is found out about the files goes into
    `notes`.

    `files` are those that were opened before. Raises `DataError` where a file cannot be read at all: it is absent,
    damaged, binary, or of no known format."""
    for form, file in (files or OpenFiles()).of(settings):
        if file.linked:
            notes.say(f"{file.name} is a link: {file.linked} is read, which is not in the folder")
        if form.package and find_spec(form.package[0]) is None:
            package, extra = form.package
            raise DataError(
                f"data {file.name}: the format {form.name!r} needs the package {package!r}, which is missing",
                f"check the path, or install it: pip install 'afina[{extra}]'",
            )
        yield from form.read(file, settings, notes)


class OpenFiles:
    """The files that one piece of work reads, each opened once, by the paths that settings name."""

    def __init__(self) -> None:
        self._found: dict[Path, list[tuple[Format, File]]] = {}

    def of(self, settings: DataSettings) -> list[tuple[Format, File]]:
        """The files of `settings.path`, each with its format. Raises `DataError`."""
        claimed = next((each for each in FORMATS if each.claims(settings)), None)
        if claimed is None:
            return self._at(settings.path)
        if not claimed.local:
            return [(claimed, File(settings.path))]
        files = [file for _, file in self._at(settings.path)]
        if settings.target is not None:
            files = files[:1]
            files[0].target = self._at(settings.target)[0][1]
        return [(claimed, file) for file in files]

    def fingerprint(self, settings: DataSettings) -> list[list[list[str]]] | None:
        """Of every path that `settings` name: the name and SHA-256 of its files; None where the content of one cannot
        be known without reading it as rows."""
        paths = (settings.path, settings.target, settings.eval_path, settings.test_path)
        given = [path for path in paths if path is not None]
        if any(not each.local and each.claims(DataSettings(path=path)) for path in given for each in FORMATS):
            return None
        return [[[file.name, file.sha256] for _, file in self._at(path)] for path in given]

    def _at(self, path: Path) -> list[tuple[Format, File]]:
        if path not in self._found:
            self._found[path] = _located(path)
        return self._found[path]


def _located(path: Path) -> list[tuple[Format, File]]:
    """The files that `path` means: itself, those of a folder in order of name, or standard input ('-'). Raises
    `DataError`."""
    if str(path) == STANDARD_INPUT:
        return [_standard_input()]
    if not path.exists():
        raise DataError(f"data {path}: no such file", "check the path")
    if path.is_dir():
        each = [File(file, linked=leads_out(file, path)) for file in sorted(path.rglob("*")) if file.is_file()]
        each = [file for file in each if file.suffix in suffixes()]
        check_fetched((file.path for file in each), DataError)
        found = [(form, file) for file in each if (form := _format_of(file))]
        if not found:
            raise DataError(
                f"data {path} is a folder without files of rows", f"files of {', '.join(suffixes())} are read"
            )
        return found
    if not path.is_file():
        raise DataError(f"data {path} is not a regular file", "write the examples to a file first, or pipe them to '-'")
    check_fetched([path], DataError)
    file = File(path)
    known = _format_of(file)
    if known is None:
        problem = f"type {file.suffix!r} is not read" if file.suffix else "it has no suffix, so its type is unknown"
        raise DataError(
            f"data {path}: {problem}", f"give one of {', '.join(suffixes())}, as it is or with {', '.join(COMPRESSED)}"
        )
    return [(known, file)]


def _format_of(file: File) -> Format | None:
    """By the file's first bytes where these are a format's own, else by its suffix."""
    start = file.start()
    by_bytes = (each for each in FORMATS if each.signature(start, file.suffix))
    by_suffix = (each for each in FORMATS if file.suffix in (*each.suffixes, *each.named_suffixes))
    return next(by_bytes, None) or next(by_suffix, None)


_standard_inputs: dict[int, tuple[Format, Path]] = {}  # what came in is kept: it comes once, and is read more than once


def _standard_input() -> tuple[Format, File]:
    """What comes in, kept in a file for as long as the program runs."""
    key = id(sys.stdin)
    if key not in _standard_inputs:
        folder = Path(tempfile.mkdtemp(prefix="afina-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        path = folder / "standard-input"
        with path.open("wb") as written:
            shutil.copyfileobj(sys.stdin.buffer, written)
        file = File(path)
        start = file.start().removeprefix(b"\xef\xbb\xbf").lstrip()
        resembling = (each for each in FORMATS if each.resembles(start))
        _standard_inputs[key] = _format_of(file) or next(resembling, None) or FORMATS[_UNNAMED], path
    known, path = _standard_inputs[key]
    return known, File(path, "standard input")
