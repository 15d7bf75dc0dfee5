"""`models cache`: what was downloaded and made, with its size; or remove it."""

from pathlib import Path

from pydantic import RootModel, model_validator

from afina.core.config import Result, Settings, setting
from afina.core.device import cache_folder
from afina.core.errors import SettingsError
from afina.core.events import Listener, ignore
from afina.core.job import Job
from afina.models.sources.caches import list_cached, remove_cached


class CacheSettings(Settings):
    name: str | None = setting(None, positional="NAME")
    """Only what has this name."""
    delete: bool = False
    """Remove NAME from the cache."""
    cache_dir: Path | None = setting(None, metavar="DIR")
    """Where downloaded models are kept."""

    @model_validator(mode="after")
    def _named(self) -> "CacheSettings":
        if self.delete and not self.name:
            raise ValueError("--delete goes with `afina models cache NAME`; `afina models cache` lists the names")
        return self


class Cached(Result):
    """Something in the cache: a model, or what is made again where it is missing (kind `made`)."""

    name: str
    kind: str
    bytes: int
    path: Path


class Freed(Result):
    freed: int
    """Bytes."""


class CacheResult(RootModel[tuple[Cached, ...] | Freed]):
    """What there is; or how much was freed."""


def cache(settings: CacheSettings, listener: Listener = ignore) -> CacheResult:
    """Lists the caches, Afina's own and the hub's, or removes `name` from them.

    Raises `InputError` where there is nothing of that name.
    """
    folder = cache_folder(settings.cache_dir)
    if settings.delete and settings.name:
        return CacheResult(Freed(freed=remove_cached(settings.name, folder)))
    found = [each for each in list_cached(folder) if settings.name in (None, each.name)]
    if settings.name and not found:
        raise SettingsError(
            f"nothing called {settings.name!r} is in the caches", "`afina models cache` lists what there is"
        )
    return CacheResult(tuple(Cached(name=e.name, kind=e.kind, bytes=e.size, path=e.path) for e in found))


JOB = Job.of(cache)
