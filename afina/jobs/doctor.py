"""`doctor`: what is slow or wrong on this machine, in a run or in a base model, and what to do."""

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from afina.core.config import Result, Settings, setting
from afina.core.device import cache_folder, pick_device, pick_dtype
from afina.core.errors import counted
from afina.core.events import Finding, Listener, State, ignore
from afina.core.job import Job
from afina.core.machine import MachineFacts, look
from afina.engine import kernels, ops
from afina.models.formats.number_formats import findings as number_findings
from afina.models.sources.caches import list_cached
from afina.models.sources.catalogue import known_models
from afina.models.sources.packages import damaged_files
from afina.runs.diagnosis import examine

GB = 1e9
_FEW_MEMORY, _FEW_DISK = 2 * GB, 2 * GB  # the starter trains in 1.5 GB; its files and a run take one
_SWAPPED = 1 * GB
_BUSY = 0.5  # processes of others a core


class DoctorSettings(Settings):
    run: Path | None = setting(None, positional="RUN")
    """A run that failed or came out poor, or a base model (a folder or .gguf file), instead of this machine."""
    cache_dir: Path | None = setting(None, metavar="DIR")
    """Where downloaded models are kept."""


class DoctorResult(Result):
    """Fit for a bug report: nothing in it names a person, a host or a folder of theirs."""

    state: State = "ok"
    """The worst of the machine's findings."""
    findings: tuple[Finding, ...]
    machine: MachineFacts | None = None

    @property
    def wrong(self) -> bool:
        return any(each.state == "wrong" for each in self.findings)


def doctor(settings: DoctorSettings, listener: Listener = ignore) -> DoctorResult:
    """Examines the run or the base model in `run`, or this machine.

    On the machine it measures what was not measured before (some seconds), and compiles the kernels if necessary.
    Raises `InputError` where the folder holds no run, or the file is damaged.
    """
    if settings.run and is_base(settings.run):
        return DoctorResult(findings=tuple(number_findings(settings.run, settings.run.name)))
    if settings.run:
        return DoctorResult(findings=tuple(examine(settings.run)))
    cache = cache_folder(settings.cache_dir)
    machine = look({"cache": cache, "this folder": Path.cwd()})
    findings = [*judge(machine), _kernels(machine, cache), _number_format(cache), *_models(cache)]
    order: list[State] = ["ok", "warning", "wrong"]
    worst = max((each.state for each in findings), key=order.index)
    return DoctorResult(state=worst, findings=tuple(findings), machine=machine)


def is_base(path: Path) -> bool:
    """Whether there is a base model, and no run or adapter."""
    holds_run = (path / "config.yaml").exists() or (path / "adapter_config.json").exists()
    return path.suffix == ".gguf" or ((path / "config.json").is_file() and not holds_run)


def judge(m: MachineFacts) -> Iterator[Finding]:
    """What follows from the machine's facts alone."""
    features = ", ".join(m.features) or "no features known"
    yield Finding("processor", "ok", f"{m.processor}: {counted(m.cores, 'core')}, {features}")
    yield _threads(m)
    if m.load > m.cores * (1 + _BUSY):
        found = f"{m.load:.1f} processes compete for its {counted(m.cores, 'core')}"
        yield Finding(
            "load",
            "warning",
            found,
            "end other programs that compute: two that share the cores are each several times slower",
        )
    few = m.memory_free < _FEW_MEMORY
    memory = f"{m.memory_free / GB:.1f} of {m.memory_limit / GB:.1f} GB free"
    yield Finding(
        "memory", "wrong" if few else "ok", memory, "close other programs, or take a smaller base" if few else ""
    )
    if m.swap_used > _SWAPPED:
        yield Finding(
            "swap",
            "warning",
            f"{m.swap_used / GB:.1f} GB lie on the disk",
            "close other programs: memory on the disk is a thousand times slower",
        )
    for name, free in m.disk_free.items():
        full = free < _FEW_DISK
        yield Finding(
            f"disk of {name}",
            "wrong" if full else "ok",
            f"{free / GB:.1f} GB free",
            _elsewhere(name, "free some space") if full else "",
        )
    for name, may in m.writable.items():
        if not may:
            yield Finding(f"writing to {name}", "wrong", "not permitted", _elsewhere(name, "change its permissions"))
    yield Finding("torch", "ok", f"{m.versions.get('torch', 'absent')}, for {m.gpu_build or 'the processor alone'}")
    yield from _gpus(m)
    for line in m.outdated:
        yield Finding("packages", "wrong", line, f"pip install --upgrade {line.split()[0]!r}")
    if not m.outdated:
        yield Finding(
            "packages",
            "ok",
            f"Afina {m.afina}, Python {m.python}, "
            + ", ".join(f"{n} {v}" for n, v in m.versions.items() if n != "torch"),
        )
    if m.settings.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        yield Finding("hub", "ok", "HF_HUB_OFFLINE is set: nothing is fetched, only what is in the cache can be used")


def _elsewhere(name: str, otherwise: str) -> str:
    return f"{otherwise}, or give {'--cache-dir' if name == 'cache' else '--out'} elsewhere"


def _threads(m: MachineFacts) -> Finding:
    found = f"torch uses {m.threads} of {counted(m.cores, 'core')}"
    variable = (
        "OMP_NUM_THREADS"
        if "OMP_NUM_THREADS" in m.settings
        else "MKL_NUM_THREADS"
        if "MKL_NUM_THREADS" in m.settings
        else ""
    )
    remedy = f"unset {variable} (it is {m.settings[variable]})" if variable else f"give --threads {m.cores}"
    if m.threads < m.cores:
        return Finding("threads", "warning", found, remedy)
    if m.threads > 2 * m.cores:
        return Finding("threads", "warning", f"{found}, so that they wait for each other", remedy)
    return Finding("threads", "ok", found)


def _gpus(m: MachineFacts) -> Iterator[Finding]:
    for card in m.gpus:
        free = f"{card.free / GB:.1f} of {card.memory / GB:.1f} GB free"
        few = card.free < _FEW_MEMORY
        yield Finding(
            f"GPU {card.device}",
            "warning" if few else "ok",
            f"{card.name}: {free}, {card.precision} ({card.reason})",
            "end other programs on it, or give --device cpu" if few else "",
        )
        if why := ops.why_torch(torch.device(card.device)):
            yield Finding(f"kernels on {card.device}", "warning", *why)
    if m.gpus:
        yield Finding(
            "GPU",
            "warning",
            "what Afina does on cards was tested with an interpreter and stand-ins so far, on no card",
            "compare what matters with --device cpu, and tell us what differs",
        )
    elif m.unused_gpu:
        yield Finding("GPU", "warning", *m.unused_gpu)
    else:
        yield Finding(
            "GPU", "ok", "none; the processor does the work (what is for cards was tested with an interpreter)"
        )


def _kernels(m: MachineFacts, cache: Path) -> Finding:
    begun = time.monotonic()
    fused = kernels.load(cache)
    if fused is not None:
        return Finding("fused kernels", "ok", f"compiled by {m.compiler}, loaded in {time.monotonic() - begun:.1f} s")
    if m.compiler is None:
        return Finding(
            "fused kernels",
            "warning",
            "no C++ compiler: the same results, in about twice the time",
            "install g++ (Debian, Ubuntu: apt install g++; macOS: xcode-select --install)",
        )
    return Finding(
        "fused kernels",
        "warning",
        f"{kernels.why_not()}: the same results, in about twice the time",
        "install a newer g++ with its OpenMP, and free space in the cache",
    )


def _number_format(cache: Path) -> Finding:
    dtype, reason = pick_dtype("auto", pick_device("cpu"), cache)
    return Finding("number format", "ok", f"{str(dtype).removeprefix('torch.')}, for {reason}")


def _models(cache: Path) -> Iterator[Finding]:
    """The catalogue's models that are in the cache, whole or not."""
    for name, entry in known_models().items():
        if entry.package is None:
            continue
        broken = damaged_files(entry.package, cache)
        if broken is None:
            continue
        state: State = "wrong" if broken else "ok"
        found = f"{', '.join(broken)} is not what was fetched" if broken else "whole"
        yield Finding(f"model {name}", state, found, f"afina models pull {name}" if broken else "")
    for item in list_cached(cache):
        if item.kind == "hub":
            for snapshot in sorted((item.path / "snapshots").glob("*")):
                yield from (each for each in number_findings(snapshot, item.name) if each.state != "ok")


JOB = Job.of(doctor)
