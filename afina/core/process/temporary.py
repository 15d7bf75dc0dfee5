"""Files and folders under temporary names until they are whole, and what killed processes left of such."""

import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from afina.core.errors import OutputError, writing
from afina.core.process.locks import alone, is_at, open_to_lock, take

_TEMPORARY = ".part"
MOVING = ".moving"  # in a folder: whole files on their way into it
_ABANDONED = 7 * 86_400  # seconds after which no process is still writing


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well; a device or pipe itself."""
    if path.exists() and not path.is_file():
        with ExitStack() as stack:
            if (handle := open_pipe(path)) is not None:
                stack.callback(os.close, handle)
            yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path, path.parent, Path.touch) as temporary:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)


def open_pipe(path: Path) -> int | None:
    """A handle of a named pipe that holds it open for writing; None of anything else. Raises `OutputError` where nobody
    reads from it: opening it the usual way would wait, perhaps for ever."""
    if not path.is_fifo():
        return None
    try:
        return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        problem = f"cannot write {path}: it is a pipe from which nobody reads"
        raise OutputError(problem, "start its reader first, or give a file's name") from None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes the folder `path` when the block ends well; where that is there already, and
    empty, its files are moved into it. Raises `OutputError`."""
    there = path.exists()
    with ExitStack() as stack:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if there and not stack.enter_context(alone(path, wait=False)):
                raise OutputError(f"another process is writing into {path}", "wait for it, or stop it")
            if there and not is_empty(path):
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
            arriving = arriving_in(path) if there else _temporary(path, path.parent, Path.mkdir)
            temporary = stack.enter_context(arriving)
        yield temporary
        with writing(path):
            if not there:
                temporary.rename(path)
                sync(path)
            stack.close()
            sync(path.parent)


@contextmanager
def arriving_in(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files are in `folder` when the block ends well; after a kill all of them or none, once
    it is `put_back`."""
    with _temporary(folder, folder, Path.mkdir) as temporary:
        yield temporary
        temporary.rename(folder / MOVING)
        put_back(folder)


def is_empty(folder: Path) -> bool:
    """Whether nothing is in a folder, once it is as it would be had no process been killed."""
    _sweep(folder, folder)
    put_back(folder)
    return not any(folder.iterdir())


def put_back(folder: Path) -> None:
    """Moves the files that are in `MOVING` to where they belong."""
    moving = folder / MOVING
    if moving.is_dir():
        for path in moving.iterdir():
            path.rename(folder / path.name)
        moving.rmdir()
        sync(folder)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of the folder `path`, if there is one, when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path, path.parent, Path.mkdir) as temporary:
        yield temporary
        while True:
            try:
                temporary.rename(path)
                break
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                remove_at_once(path)
        sync(path.parent)


@contextmanager
def _temporary(path: Path, folder: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """Something new in `folder` that will be `path`, and goes where the block fails. It is locked, which tells it from
    what a process that was killed left: of `path` that goes too."""
    temporary, handle = _locked(path, folder, make)
    try:
        yield temporary
    except BaseException:
        remove(temporary)
        raise
    finally:
        if handle is not None:
            os.close(handle)
    _sweep(path, folder)


def _sweep(path: Path, folder: Path) -> None:
    sweep(folder.glob(f".{escape(path.name)}.{'[0-9a-f]' * 8}{_TEMPORARY}"))


def _hidden(path: Path) -> str:
    return f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY}"


def _locked(path: Path, folder: Path, make: Callable[[Path], None]) -> tuple[Path, int | None]:
    while True:
        temporary = folder / _hidden(path)
        make(temporary)  # with the rights that the user gives new files
        handle = open_to_lock(temporary)
        if handle is None or take(handle, wait=True) is None or is_at(handle, temporary):
            return temporary, handle
        os.close(handle)  # before it was locked another process took it for what a killed one left


def temporaries(folder: Path) -> list[Path]:
    """The temporary files in `folder` and the folders in it: another process writes them now, or was killed."""
    return [path for depth in ("", "*/") for path in folder.glob(f"{depth}.*{_TEMPORARY}")]


def sweep(paths: Iterable[Path]) -> None:
    """Removes those of the temporary files and folders that no process writes to. Where there are no locks to tell it
    by, they are a week old."""
    for path in paths:
        with suppress(OSError):  # it is gone meanwhile, or may not be removed
            handle = open_to_lock(path)
            try:
                free = None if handle is None else take(handle)
                if time.time() - path.stat().st_mtime > _ABANDONED if free is None else free:
                    remove(path)
            finally:
                if handle is not None:
                    os.close(handle)


def remove(path: Path) -> None:
    """Removes a file, a link or a folder with what is in it, if it is there; another process may do so too."""

    def failed(_: object, __: object, error: tuple[Any, BaseException, Any]) -> None:
        if not isinstance(error[1], FileNotFoundError):
            raise error[1]

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, onerror=failed)
    else:
        path.unlink(missing_ok=True)


def remove_at_once(path: Path) -> None:
    """Removes a folder that nobody shall ever find half removed, if it is there."""
    aside = path.with_name(_hidden(path))
    with suppress(FileNotFoundError):
        path.rename(aside)
    remove(aside)


def sync(path: Path) -> None:
    """Returns once the content of a file, or the names in a folder, are on the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():  # Windows opens no folders
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
