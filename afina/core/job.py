"""A job: settings in, a result out, under the name by which a user asks for it.

Each job is a file with one public function, named like the file, and the function's `Job`. The file of
`afina adapters merge` begins with

    `adapters merge`: fold an adapter into its base

in its docstring, holds `def merge(settings: MergeSettings, listener: Listener = ignore) -> MergeResult`, and ends with
`JOB = Job.of(merge)`.

The first line of the docstring is the job's name, as on the command line, and its help. A registry reads it without
importing the file, so that listing all jobs costs milliseconds. `NAME --flag` is the job that takes the place of `NAME`
where the flag is given.
"""

import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, get_type_hints

from afina.core.registry import Registry

if TYPE_CHECKING:
    from pydantic import BaseModel

    from afina.core.config import Settings

_FIRST_LINE = re.compile(r'(?:""")?`(?P<name>[^`]+)`: (?P<help>.+?)\.?(?:""")?$', re.MULTILINE)


class Listed(Protocol):
    """A job as a registry lists it: `load` imports what it needs."""

    @property
    def name(self) -> str: ...
    @property
    def help(self) -> str: ...
    def load(self) -> "Job": ...


class Job(NamedTuple):  # dataclasses would take a tenth of the time of `afina --help`
    """`function(settings, listener)` gives a `result`; both models have JSON schemas."""

    name: str
    help: str
    settings: "type[Settings]"
    result: "type[BaseModel]"
    function: Callable[..., Any]

    @staticmethod
    def of(function: Callable[..., Any]) -> "Job":
        """The job of a file: name and help are the first line of its docstring, the models those of the annotations."""
        first = _FIRST_LINE.match(sys.modules[function.__module__].__doc__ or "")
        assert first, f"the docstring of {function.__module__} begins with `name`: help"
        hints = get_type_hints(function)
        return Job(first["name"], first["help"], hints["settings"], hints["return"], function)

    def load(self) -> "Job":
        return self

    def schema(self) -> dict[str, Any]:
        """The JSON schemas of both models, under `settings` and `result`."""
        return {
            "settings": self.settings.model_json_schema(),
            "result": self.result.model_json_schema(mode="serialization"),
        }


class _File(NamedTuple):
    """A job whose file was not imported yet."""

    name: str
    help: str
    module: str

    def load(self) -> Job:
        job: Job = import_module(self.module).JOB
        return job


class Jobs(Registry[Listed]):
    """The jobs in the files of a package and of the folders in it, and those added from outside."""

    def __init__(self, package: str) -> None:
        super().__init__(package, "JOB", "job")
        self._rooms: dict[str, str] = {}

    def help(self, word: str) -> str:
        """What the job `word` does, or what the jobs of the folder `word` are about."""
        return self[word].help if word in self else self._rooms.get(word, "")

    def _read(self) -> None:
        if self._complete:
            return
        self._complete = True
        root = Path(import_module(self._package).__path__[0])
        for path in sorted([*root.glob("*.py"), *root.glob("*/*.py")]):
            if path.name.startswith("_") and path.parent == root:
                continue
            with path.open(encoding="utf-8") as file:
                first = _FIRST_LINE.match(file.readline())
            if first is None:
                continue
            if path.name == "__init__.py":
                self._rooms[first["name"]] = first["help"]
            else:
                module = ".".join([self._package, *path.relative_to(root).with_suffix("").parts])
                self._add(_File(first["name"], first["help"], module))
