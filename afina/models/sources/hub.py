"""Models of the Hugging Face hub: downloads into its cache, checked against the hashes that the hub promises."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from afina.core.errors import BaseModelError, OutputError, brief
from afina.core.files import sha256, write_atomic
from afina.models.sources.resumed import fetch_resumed

_NO_WEIGHTS = "base {!r} has no config.json with safetensors weights on the hub"
_TIMEOUT = 20.0  # seconds without a byte from the hub
_SHA256 = re.compile(r"[0-9a-f]{64}")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# Weights as safetensors only (no pickles), no code; tokenizer and settings beside them.
HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "merges.txt", "vocab.txt", "*.jinja", "README.md"]


def fetch_headers(hub_id: str, revision: str | None) -> tuple[Path, int]:
    """The folder of the hub's cache with a model's config.json, and the bytes of its weight files by their headers.

    Fetches some kB per file. Raises `BaseModelError`.
    """
    from huggingface_hub import HfApi, hf_hub_download

    with _explained(hub_id, revision):
        config = Path(hf_hub_download(hub_id, "config.json", revision=revision))
        found = HfApi().get_safetensors_metadata(hub_id, revision=config.parent.name)
    ends = (max(tensor.data_offsets[1] for tensor in file.tensors.values()) for file in found.files_metadata.values())
    return config.parent, sum(ends)


def fetch_model(name: str, revision: str | None, cache: Path) -> Path:
    """The folder of the model `name` in the hub's cache, downloaded where it is not there, checked once. Raises
    `BaseModelError`."""
    folder = _snapshot(name, revision)
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        raise BaseModelError(_NO_WEIGHTS.format(name), "choose another base")
    seen = cache / "verified" / f"{name.replace('/', '--')}-{folder.name}"
    if not seen.exists():
        for again in (True, False):
            broken = [file for file in sorted(folder.iterdir()) if not _has_promised_hash(file)]
            if not broken:
                break
            for file in broken:  # never used: fetched once more, then refused
                file.resolve().unlink(missing_ok=True)
                file.unlink(missing_ok=True)
            if not again:
                raise BaseModelError(
                    f"base {name!r}: {', '.join(file.name for file in broken)} came from the hub, twice, with content "
                    "that does not match the hub's own hash; it was thrown away",
                    "try again; if it repeats, a proxy or mirror (HF_ENDPOINT) changes the files",
                )
            folder = _snapshot(name, revision)
        with suppress(OutputError):  # a cache that cannot be written costs the check again, no more
            write_atomic(seen, "")
    return folder


def _snapshot(name: str, revision: str | None) -> Path:
    """The folder of a hub model's files, fetched where they are not in the hub's cache; interrupted downloads are
    resumed."""
    from huggingface_hub import snapshot_download

    with _explained(name, revision):
        _fetch_weights(name, revision)
        return Path(snapshot_download(name, revision=revision, allow_patterns=HUB_FILES))


def _fetch_weights(name: str, revision: str | None) -> None:
    """Puts weight files that are absent into the hub's cache, where its library then finds them: by itself that begins
    anew whenever a process was killed."""
    from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    try:
        info = HfApi().model_info(name, revision=revision, timeout=_TIMEOUT)
    except Exception:  # offline, unknown, gated: the library finds the files in its cache, or says why not
        return
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    for file in [each.rfilename for each in info.siblings or ()]:
        if not file.endswith(".safetensors") or (folder / "snapshots" / str(info.sha) / file).exists():
            continue
        url = hf_hub_url(name, file, revision=info.sha)
        found = get_hf_file_metadata(url)
        if (
            found.size is None
            or found.size > constants.MAX_HTTP_DOWNLOAD_SIZE
            or not _SHA256.fullmatch(found.etag or "")
        ):
            continue
        headers = build_hf_headers()
        if urlsplit(found.location).netloc != urlsplit(url).netloc:
            headers.pop("authorization", None)  # a signed address elsewhere, which the token is no business of
        fetch_resumed(found.location, folder / "blobs" / str(found.etag), found.size, headers)


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

    get_session().timeout = _TIMEOUT  # the hub's library itself waits forever
    # Not its messages per attempt: the last error is explained here.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
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
            f"base {name!r} is neither a folder nor in the hub's cache, and the hub cannot be reached, or does not "
            f"answer as a hub does{offline}",
            "check the name and the network, or give a local model",
        ) from error


def _first_cause(error: BaseException) -> str:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return f"{type(error).__name__}: {brief(error)}"


def _has_promised_hash(file: Path) -> bool:
    """Whether a file of the hub's cache has the hash that its name there states: SHA-256 of large files, git's SHA-1
    of others."""
    blob = file.resolve()
    with suppress(FileNotFoundError):  # another process has found it broken, and removes it
        if _SHA256.fullmatch(blob.name):
            return sha256(blob) == blob.name
        if re.fullmatch(r"[0-9a-f]{40}", blob.name):
            content = blob.read_bytes()
            return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == blob.name
        return True
    return False
