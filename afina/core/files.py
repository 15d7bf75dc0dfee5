"""Files: written under a temporary name and renamed, so that a reader never sees half of one."""

import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from afina.core.errors import InputError, OutputError, brief, enumerated, writing
from afina.core.limits import JSON_BYTES, JSON_CHARACTERS, NESTING
from afina.core.process.temporary import open_pipe, replacing

if TYPE_CHECKING:
    from torch import Tensor


_POINTER = b"version https://git-lfs.github.com/spec/"
_MOST_OF_A_POINTER = 1024  # bytes; git-lfs itself takes nothing longer for one


def check_fetched(files: Iterable[Path], error: type[InputError]) -> None:
    """Raises `error` where files are git-lfs pointers: a clone holds a few lines of text in the place of each large
    file until its content is fetched; or no files, but pipes and devices. Files that cannot be opened are left to those
    that read them."""
    files = list(files)
    for file in files:
        check_regular(file, error)
    pointers = [file for file in files if _is_pointer(file)]
    if pointers:
        named = enumerated([str(file) for file in pointers], 3)
        what = "is a git-lfs pointer" if len(pointers) == 1 else "are git-lfs pointers"
        problem = f"{named} {what}: a few lines in the place of content that was not fetched"
        raise error(problem, "run `git lfs pull` in that folder, or download it another way")


def check_regular(path: Path, error: type[InputError]) -> None:
    """Raises `error` for a pipe or a device, which may never say anything, or never end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise _not_regular(path, error)


def _not_regular(path: Path, error: type[InputError]) -> InputError:
    return error(f"{path} is not a regular file", "put a file with its content there")


def _is_pointer(file: Path) -> bool:
    try:
        if not 0 < file.stat().st_size <= _MOST_OF_A_POINTER:
            return False
        with file.open("rb") as opened:
            return opened.read(len(_POINTER)) == _POINTER
    except OSError:
        return False


def leads_out(file: Path, folder: Path) -> Path | None:
    """Where `file`, found in `folder`, really is, if a link leads out of that folder. The links of the hub's cache, in
    which the files of a snapshot are blobs beside it, lead nowhere else."""
    target, inside = file.resolve(), folder.resolve()
    snapshot = next((each for each in (inside, *inside.parents) if each.parent.name == "snapshots"), None)
    roots = [inside, snapshot.parents[1] / "blobs"] if snapshot else [inside]
    return None if any(target.is_relative_to(root) for root in roots) else target


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes `content` to `path` whole or not at all, making the folders above it.

    A device or pipe is written directly: renaming over it would replace it. Raises `OutputError`.
    """
    with writing(path), replacing(path) as temporary:
        # Halves of characters, which names of files may have that are no Unicode, are written as JSON reads them again.
        temporary.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


def write_tensors(path: Path, tensors: "dict[str, Tensor]", metadata: dict[str, str]) -> None:
    """Writes a safetensors file whole or not at all, without holding its bytes in memory. Raises `OutputError`."""
    from safetensors.torch import save_file

    with storing(path), replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """`writing`, where safetensors writes, whose errors name the system's by number."""
    from safetensors import SafetensorError

    with writing(path):
        try:
            yield
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else 0, str(error)) from error


def check_writable(path: Path) -> None:
    """Raises `OutputError` where `path` could not be written, before any work is done for it."""
    if path.exists() and not path.is_file():
        if path.is_dir():
            raise OutputError(f"cannot write {path}: it is a folder, not a file", "give a file's name")
        with writing(path):
            open_pipe(path)  # stays open until this process ends: its reader would take closing for the end
        return
    with writing(path):
        _try_folder(path.parent)


def check_writable_folder(folder: Path) -> None:
    """The same of a folder for `--out`, there or not."""
    with writing(f"into --out {folder}", "choose another --out"):
        _try_folder(folder)


def _try_folder(folder: Path) -> None:
    absent = [each for each in (folder.absolute(), *folder.absolute().parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()  # which has no name that a kill could leave
    for each in absent:
        each.rmdir()


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with jsonl_writer(path) as write:
        for row in rows:
            write(row)


@contextmanager
def jsonl_writer(path: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What writes a row a line; the file is there, whole, when the block ends well. Raises `OutputError`."""
    with ExitStack() as stack:
        with writing(path):
            temporary = stack.enter_context(replacing(path))
            file = temporary.open("w", encoding="utf-8", newline="\n")

        def write(row: dict[str, Any]) -> None:
            line = json.dumps(row, ensure_ascii=False) + "\n"
            with writing(path):
                file.write(line)

        try:
            yield write
            with writing(path):
                file.close()
        except BaseException:
            with suppress(OSError):  # on a full disk closing fails too
                file.close()
            raise
        with writing(path):
            stack.close()


def write_yaml(path: Path, value: Any) -> None:
    write_atomic(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def read_text(path: Path, most: int, error: type[InputError]) -> str:
    """The UTF-8 text of a file that somebody names. Raises `error` for what is no regular file, which may never say
    anything or never end, and for more than `most` bytes, however many it claims; `OSError`, `UnicodeDecodeError`."""
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise _not_regular(path, error)
        content = file.read(most + 1)
    if len(content) > most:
        raise error(f"{path} has more than {most >> 20:,} MB, the most that is read", "check what it is")
    return content.decode()


def _without_waiting(path: str, flags: int) -> int:
    """Opens a pipe at once, whether or not anybody writes to it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def check_size(path: Path, most: int, error: type[InputError]) -> None:
    """Raises `error` where a file is larger than anything of its kind."""
    try:
        size = path.stat().st_size
    except OSError:  # left to those that read it
        return
    if size > most:
        raise error(f"{path} has {size >> 20:,} MB, and {most >> 20:,} are the most that is read", "check what it is")


def read_json(path: Path) -> Any:
    """The parsed file. Raises `InputError` if it is absent, not JSON, or beyond the limits (core/limits.py)."""
    try:
        value = json.loads(read_text(path, JSON_BYTES, InputError))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {brief(error)}") from error
    if nested_deeply(value):
        raise InputError(f"{path} is nested more than {NESTING} deep")
    return value


def nested_deeply(value: Any) -> bool:
    """Whether lists and objects stand in one another more than `NESTING` times: what walks through them would end in
    an error of Python's stack."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(NESTING):
        level = [
            child
            for each in level
            for child in (each.values() if isinstance(each, dict) else each)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All of `jsonl_rows`."""
    return list(jsonl_rows(path))


def jsonl_rows(path: Path) -> Iterator[dict[str, Any]]:
    """One dict a line of a file that Afina wrote, as they are read; an unfinished last line (a killed run) is left out.
    Raises `InputError`."""
    check_regular(path, InputError)
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            while line := file.readline(JSON_CHARACTERS):
                if len(line) == JSON_CHARACTERS:
                    raise InputError(f"{path} has a line of more than {JSON_CHARACTERS:,} characters")
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    return
                yield row
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or brief(error)}") from error


def append_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Adds whole lines to a file in one write, so that those of two writers stay apart; `mode` is of a new file. A link
    is not followed. Raises `OutputError`."""
    with writing(path):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), mode)
        try:
            os.write(handle, text.encode())
        finally:
            os.close(handle)


def sha256_of_all(files: Iterable[Path]) -> str:
    """Hex digest over the names of files and the digests of their contents."""
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name} {sha256(file)}\n".encode())
    return total.hexdigest()


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
