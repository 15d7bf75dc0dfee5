"""Things of one kind by name, each in a file of its own: to add one is to add one file.

A room of such things (LoRA's variants, metrics, readers of files) holds a module a thing, and a table of them:

    VARIANTS: Registry[Variant] = Registry("afina.lora.variants", "VARIANT", "variant")

Each module gives its thing under the attribute named there (or several, as a tuple). Modules are imported when the
table is first read; those whose names begin with an underscore are shared code and are not looked at.
"""

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from afina.core.errors import SettingsError, near

if TYPE_CHECKING:
    from pydantic_core import core_schema


class Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)
_READING = threading.RLock()  # tables are read by several threads of a server at once, and one reads another


class Registry(Generic[T]):
    """The things of `package`, by their `name`; `noun` is what one is called in messages."""

    def __init__(self, package: str, attribute: str, noun: str) -> None:
        self._package, self._attribute, self.noun = package, attribute, noun
        self._things: dict[str, T] = {}
        self._complete = False

    def add(self, thing: T) -> None:
        """Adds `thing` from outside the package. Raises `SettingsError` where its name is taken."""
        self._read()
        self._add(thing)

    @contextmanager
    def added(self, thing: T) -> Iterator[T]:
        """Inside the block `thing` is in the table."""
        self.add(thing)
        try:
            yield thing
        finally:
            del self._things[thing.name]

    def __getitem__(self, name: str) -> T:
        """Raises `SettingsError` that names what there is."""
        self._read()
        if name not in self._things:
            raise SettingsError(self.unknown(name), f"choose from {', '.join(self.names())}")
        return self._things[name]

    def __contains__(self, name: object) -> bool:
        self._read()
        return name in self._things

    def __iter__(self) -> Iterator[T]:
        self._read()
        return iter(self._things.values())

    def names(self) -> tuple[str, ...]:
        self._read()
        return tuple(self._things)

    def unknown(self, name: str) -> str:
        """What is wrong with `name`, which is not in the table."""
        return f"there is no {self.noun} {name!r}.{near(name, self.names())}"

    def _read(self) -> None:
        if self._complete:
            return
        with _READING:
            if not self._complete:
                self._import()

    def _import(self) -> None:
        import pkgutil  # late: `afina --help` needs none of it

        self._things.clear()  # what an import that failed left behind
        package = importlib.import_module(self._package)
        for found in pkgutil.iter_modules(package.__path__):
            if not found.name.startswith("_"):
                module = importlib.import_module(f"{self._package}.{found.name}")
                things = getattr(module, self._attribute, None)
                assert things, f"{module.__name__} has no {self._attribute}: each file here gives a {self.noun}"
                for thing in things if isinstance(things, tuple) else (things,):
                    self._add(thing)
        self._complete = True

    def _add(self, thing: T) -> None:
        if thing.name in self._things:
            raise SettingsError(f"there is already a {self.noun} {thing.name!r}", "give it another name")
        self._things[thing.name] = thing


class OneOf:
    """For a setting that names a thing of a table: `variant: Annotated[str, OneOf(VARIANTS)] = "lora"`."""

    def __init__(self, registry: Registry[Any]) -> None:
        self.registry = registry

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> "core_schema.CoreSchema":
        from pydantic_core import core_schema  # late: it takes longer than all that `afina --help` needs

        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {**handler(schema), "enum": list(self.registry.names())}

    def _check(self, value: str) -> str:
        if value not in self.registry:
            raise ValueError(f"{self.registry.unknown(value)} Choose from {', '.join(self.registry.names())}")
        return value
