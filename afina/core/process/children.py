"""How children are started: nothing that they import or run comes from the current folder, where data lie."""

import os
import sys
from shutil import which


def python(*words: str) -> list[str]:
    """The command of a Python process that has the current folder nowhere on its path; isolated where this one is."""
    return [sys.executable, "-I" if sys.flags.isolated else "-P", *words]


def program(*names: str) -> str | None:
    """The path of the first of these programs that is in a folder of PATH; relative ones are left out."""
    folders = os.pathsep.join(filter(os.path.isabs, os.environ.get("PATH", os.defpath).split(os.pathsep)))
    return next((found for name in names if (found := which(name, path=folders))), None)
