"""What this machine is and has, as facts that may be shown to others: no names of people, hosts or folders of
theirs."""

import os
import platform
import shutil
import time
from contextlib import suppress
from importlib import metadata
from ipaddress import ip_address
from pathlib import Path

import psutil
import torch

from afina.core.config import Settings
from afina.core.device import (
    VISIBLE,
    Card,
    compiler,
    gpu_build,
    memory_free,
    memory_limit,
    processor,
    processor_features,
    unused_card,
    usable_cards,
)
from afina.version import __version__

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "gguf", "numpy", "pydantic")
# What the processor can that decides how fast products are, by the names of Linux's /proc/cpuinfo (ARM's among them).
_FEATURES = ("amx_bf16", "amx_tile", "avx512_bf16", "avx512f", "avx2", "bf16", "asimd")
_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HUB_OFFLINE", "HF_ENDPOINT", VISIBLE)
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


class MachineFacts(Settings):
    """Memory and disk in bytes; `memory_limit` is what this process may use, `load` how many processes want the
    processor now, `gpu_build` what cards torch is built for. `unused_gpu`: why a card is not used, and what to do."""

    afina: str
    python: str
    system: str
    versions: dict[str, str]
    outdated: tuple[str, ...]
    processor: str
    features: tuple[str, ...]
    cores: int
    threads: int
    load: float
    memory_limit: int
    memory_free: int
    swap_used: int
    disk_free: dict[str, int]
    writable: dict[str, bool]
    compiler: str | None
    gpu_build: str | None
    gpus: tuple[Card, ...]
    unused_gpu: tuple[str, str] | None
    settings: dict[str, str]
    proxies: bool


class OtherPrograms:
    """How many `processors` others used while it was open."""

    processors = 0.0

    def __enter__(self) -> "OtherPrograms":
        self._before = time.monotonic(), self._used()
        return self

    def __exit__(self, *_: object) -> None:
        begun, used = self._before
        self.processors = max(0.0, (self._used() - used) / max(1e-9, time.monotonic() - begun))

    @staticmethod
    def _used() -> float:
        """Seconds of processor time of all programs but this one."""
        every, own = psutil.cpu_times(), time.process_time()
        return float(every.user + every.system + getattr(every, "nice", 0.0)) - own


def look(places: dict[str, Path]) -> MachineFacts:
    """The machine as it is now; `places` are folders that are written to, by what they are for."""
    swap = psutil.swap_memory()
    return MachineFacts(
        afina=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        versions={name: metadata.version(name) for name in _PACKAGES if _installed(name)},
        outdated=tuple(_outdated()),
        processor=processor(),
        features=tuple(name for name in _FEATURES if name in processor_features()),
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        memory_limit=memory_limit(),
        memory_free=memory_free(),
        swap_used=int(swap.used),
        disk_free={name: shutil.disk_usage(_existing(path)).free for name, path in places.items()},
        writable={
            name: _existing(path).is_dir() and os.access(_existing(path), os.W_OK) for name, path in places.items()
        },
        compiler=Path(program).name if (program := compiler()) else None,
        gpu_build=gpu_build(),
        gpus=usable_cards(),
        unused_gpu=unused_card(),
        settings={name: _shown(name) for name in _SETTINGS if name in os.environ},
        proxies=any(os.environ.get(name) or os.environ.get(name.lower()) for name in _PROXIES),
    )


def _shown(name: str) -> str:
    """A variable's value, or only that it is set where that might be an address of somebody's."""
    return "set" if name == "HF_ENDPOINT" else os.environ[name]


def usable_cores() -> int:
    """Processor cores that this process may use (hyper-threads of one core count once where all may be used)."""
    logical = psutil.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    return allowed if allowed < logical else psutil.cpu_count(logical=False) or logical


def _existing(path: Path) -> Path:
    return next(folder for folder in [path.absolute(), *path.absolute().parents] if folder.exists())


def _installed(name: str) -> bool:
    with suppress(metadata.PackageNotFoundError):
        metadata.version(name)
        return True
    return False


def _outdated() -> list[str]:
    """Requirements of Afina that the installed packages do not meet."""
    from packaging.requirements import Requirement

    try:
        required = [Requirement(line) for line in metadata.requires("afina") or ()]
    except metadata.PackageNotFoundError:
        return []
    found = []
    for each in required:
        if each.marker and not each.marker.evaluate({"extra": ""}):
            continue
        version = metadata.version(each.name) if _installed(each.name) else None
        if version is None or not each.specifier.contains(version, prereleases=True):
            found.append(f"{each.name} {version or 'is absent'}, needed is {each.specifier or 'any version'}")
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine is reached by the name or address `host`."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
