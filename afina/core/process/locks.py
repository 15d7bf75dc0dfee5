"""Locks on open files and folders, which the system releases when a process dies, however it dies. Some network file
systems, and Windows, have none."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


def take(handle: int, wait: bool = False, shared: bool = False) -> bool | None:
    """Locks the open file or folder until `handle` is closed, or `shared` with others who do. False where another
    process has it; None where there are no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def open_to_lock(path: str | os.PathLike[str]) -> int | None:
    """A handle of a file or folder; None where it cannot be opened for a lock alone (Windows: a file that is open there
    can be neither renamed nor removed)."""
    return None if os.name == "nt" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def is_at(handle: int, path: str | os.PathLike[str]) -> bool:
    """Whether the open file or folder is the one at `path`: who had its lock may have renamed or removed it."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def alone(path: str | os.PathLike[str], wait: bool = True) -> Iterator[bool]:
    """Locks a file or folder for the block, once no other process has it; not to `wait` gives False where one has."""
    handle = open_to_lock(path)
    try:
        yield handle is None or take(handle, wait) is not False
    finally:
        if handle is not None:
            os.close(handle)


def in_use(path: str | os.PathLike[str]) -> bool:
    """Whether a process has locked the file or folder now. Without locks none is seen."""
    return locked_by_another(path) is True


def locked_by_another(path: str | os.PathLike[str]) -> bool | None:
    """The same; None where there are no locks to tell it by."""
    handle = open_to_lock(path)
    if handle is None:
        return None
    try:
        free = take(handle, shared=True)
        return None if free is None else not free
    finally:
        os.close(handle)
