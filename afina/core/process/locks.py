"""Locks on open files and folders, which the system releases when a process dies, however it dies. Some network file
systems, and Windows, have none."""

import os


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


def in_use(path: str | os.PathLike[str]) -> bool:
    """Whether a process has locked the file or folder now. Without locks none is seen."""
    handle = open_to_lock(path)
    if handle is None:
        return False
    try:
        return take(handle, shared=True) is False
    finally:
        os.close(handle)
