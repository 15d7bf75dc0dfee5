"""Where this user's files go, which libraries look for too: the home folder, or one that ends with this process."""

import atexit
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

import platformdirs

_made: set[Path] = set()
_LIBRARIES = ("HF_HOME", "MPLCONFIGDIR")  # what tells them where, before they are imported


def cache_home() -> Path:
    """The folder that AFINA_CACHE names, else the user's; for a user who has none, one that lasts as long as this
    process and its children: they, and libraries, find it in the environment."""
    named = os.environ.get("AFINA_CACHE")
    if named:
        return Path(named)
    with suppress(RuntimeError):  # there is no home: no HOME, and no such user
        own = Path(platformdirs.user_cache_dir("afina"))
        if own.is_absolute() and os.environ.get("HOME") != "":
            return own
    folder = tempfile.mkdtemp(prefix="afina-cache-")
    _made.add(Path(folder))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["AFINA_CACHE"] = folder
    for name in _LIBRARIES:
        os.environ.setdefault(name, os.path.join(folder, name.lower()))
    return Path(folder)


def lasts(cache: Path) -> bool:
    """Whether a folder from `cache_home` is still there when this process has ended."""
    return cache not in _made
