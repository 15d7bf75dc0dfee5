"""Afina's own cache and the hub's: what is in them, and removing it."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afina.core.errors import BaseModelError, near, writing
from afina.models.sources.catalogue import known_models
from afina.models.sources.packages import package_folder

_RECOMPUTED = (
    "rows",
    "outcomes",
    "kernels",
)  # folders of Afina's cache whose files are made again where they are missing


@dataclass(frozen=True)
class CachedItem:
    """Something in a cache: a model by its name (`kind` package or hub), or files that Afina made. `size` in bytes."""

    name: str
    kind: str
    size: int
    path: Path


def list_cached(cache: Path) -> list[CachedItem]:
    """Everything in the caches, models first."""
    return [*_packages(cache), *_hub_models(), *_made(cache)]


def remove_cached(name: str, cache: Path) -> int:
    """Removes what is cached under `name`; the bytes that were freed. Raises `BaseModelError` where there is nothing
    of that name."""
    items = list_cached(cache)
    entry = known_models().get(name)
    wanted = [item for item in items if item.name in (name, entry.hub_id if entry else name)]
    if not wanted:
        raise BaseModelError(
            f"nothing called {name!r} is in the caches.{near(name, [item.name for item in items])}",
            "`afina models cache` lists what there is",
        )
    for item in wanted:
        with writing(item.path):
            if item.kind == "hub":
                scan = _scan()
                hashes = [r.commit_hash for repo in scan.repos if repo.repo_id == item.name for r in repo.revisions]
                scan.delete_revisions(*hashes).execute()
            else:
                shutil.rmtree(item.path)
    return sum(item.size for item in wanted)


def _packages(cache: Path) -> Iterator[CachedItem]:
    for name, entry in known_models().items():
        if entry.package is None:
            continue
        folder = package_folder(entry.package, cache)
        if folder.exists():
            yield CachedItem(name, "package", _bytes(folder), folder)


def _hub_models() -> Iterator[CachedItem]:
    scan = _scan()
    for repo in sorted(scan.repos, key=lambda repo: repo.repo_id) if scan else ():
        if repo.repo_type == "model":
            yield CachedItem(repo.repo_id, "hub", repo.size_on_disk, repo.repo_path)


def _scan() -> Any:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return scan_cache_dir()
    except CacheNotFound:
        return None


def _made(cache: Path) -> Iterator[CachedItem]:
    for name in _RECOMPUTED:
        if (cache / name).is_dir():
            yield CachedItem(name, "made", _bytes(cache / name), cache / name)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
