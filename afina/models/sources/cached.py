"""What was fetched and made lies in two caches, Afina's own and the hub's: listed, and taken away."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afina.core.errors import BaseModelError, near, writing
from afina.models.sources.catalogue import known_models
from afina.models.sources.locate import folder_of

_MADE = ("rows", "outcomes", "kernels")  # what is made again where it is missing


@dataclass(frozen=True)
class Kept:
    """Something in a cache: a model by its name, or what was made. `size` in bytes."""

    name: str
    what: str
    size: int
    path: Path


def kept(cache: Path) -> list[Kept]:
    """Everything in the caches, models first."""
    return [*_packages(cache), *_hub(), *_made(cache)]


def take_away(name: str, cache: Path) -> int:
    """Removes what is kept under `name`; the bytes that were freed. Raises `BaseModelError` where there is nothing of that name."""
    found = kept(cache)
    entry = known_models().get(name)
    wanted = [each for each in found if each.name in (name, entry.hub_id if entry else name)]
    if not wanted:
        raise BaseModelError(
            f"nothing called {name!r} is in the caches.{near(name, [each.name for each in found])}",
            "`afina models cache` lists what there is",
        )
    for each in wanted:
        with writing(each.path):
            if each.what == "hub":
                scan = _scan()
                hashes = [r.commit_hash for repo in scan.repos if repo.repo_id == each.name for r in repo.revisions]
                scan.delete_revisions(*hashes).execute()
            else:
                shutil.rmtree(each.path)
    return sum(each.size for each in wanted)


def _packages(cache: Path) -> Iterator[Kept]:
    for name, entry in known_models().items():
        if entry.package is None:
            continue
        folder = folder_of(entry.package, cache)
        if folder.exists():
            yield Kept(name, "package", _bytes(folder), folder)


def _hub() -> Iterator[Kept]:
    scan = _scan()
    for repo in sorted(scan.repos, key=lambda each: each.repo_id) if scan else ():
        if repo.repo_type == "model":
            yield Kept(repo.repo_id, "hub", repo.size_on_disk, repo.repo_path)


def _scan() -> Any:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        return scan_cache_dir()
    except CacheNotFound:
        return None


def _made(cache: Path) -> Iterator[Kept]:
    for name in _MADE:
        if (cache / name).is_dir():
            yield Kept(name, "made", _bytes(cache / name), cache / name)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
