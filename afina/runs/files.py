"""What a run's folder holds, for the doctor: each file as far as it can be read, and what is wrong with those that cannot."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from afina.core.config import read_yaml
from afina.core.errors import InputError, brief
from afina.core.events import Done, Event, HeldOut, Step, end_of, read_events
from afina.core.files import read_json, read_jsonl
from afina.core.finding import Finding
from afina.lora.peft_files import CONFIG, WEIGHTS

# What reading and looking through a file raises that is not as Afina wrote it.
_UNREADABLE = (InputError, SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError)
_ANEW = "take it from a copy, or train anew"
_OF_A_RUN = ("config.yaml", "metrics.jsonl", "evaluation.json", "adapter")


@dataclass(frozen=True)
class RunFiles:
    """What is absent or damaged is None or empty; `damaged` says so."""

    folder: Path
    config: dict[str, Any]
    facts: dict[str, Any]
    steps: list[Step]
    held_out: list[HeldOut]
    done: Done | None
    evaluation: dict[str, Any] | None
    rejected: list[dict[str, Any]]
    peft: dict[str, Any]
    weights: dict[str, torch.Tensor] | None
    damaged: list[Finding]

    @property
    def losses(self) -> list[float]:
        return [step.loss for step in self.steps]

    @property
    def evaluated(self) -> bool:
        return (self.folder / "evaluation.json").exists()


def read_run(folder: Path) -> RunFiles:
    """Raises `InputError` where `folder` holds nothing of a run."""
    if not any((folder / name).exists() for name in _OF_A_RUN):
        raise InputError(f"{folder} holds no run", "give the folder that `afina train` wrote (its --out)")
    damaged: list[Finding] = []

    def whole(name: str, read: Callable[[Path], Any], otherwise: Any, remedy: str = _ANEW) -> Any:
        path = folder / name
        try:
            return read(path) if path.exists() else otherwise
        except _UNREADABLE as error:
            why = f"it cannot be read: damaged or cut off ({brief(error).replace(f'{folder}/', '')})"
            damaged.append(Finding(name, "wrong", why, remedy))
            return otherwise

    if not (folder / "config.yaml").exists():
        found = "it is not there; without it the run can neither go on nor be repeated"
        damaged.append(Finding("config.yaml", "wrong", found, _ANEW))
    whole("forecast.json", _forecast, None, "the run does without it")
    events = whole("metrics.jsonl", _events, [], "take it from a copy; the adapter does without it")
    return RunFiles(
        folder,
        whole("config.yaml", _config, {}),
        whole("adapter/afina.json", _facts, {}),
        [event for event in events if isinstance(event, Step)],
        [event for event in events if isinstance(event, HeldOut)],
        end_of(events),
        whole("evaluation.json", _evaluation, None, "`afina eval RUN DATA` writes it anew"),
        whole("rejected.jsonl", _rejected, [], "`afina data check` says what is wrong with the rows"),
        whole(f"adapter/{CONFIG}", _peft, {}),
        whole(f"adapter/{WEIGHTS}", load_file, {} if (folder / "adapter" / WEIGHTS).exists() else None),
        damaged,
    )


def _config(path: Path) -> dict[str, Any]:
    if not path.read_text(encoding="utf-8").endswith("\n"):
        raise InputError("its last line is not whole")
    found = read_yaml(path)
    for part in ("data", "train"):
        found.setdefault(part, {}).get("path")
    return found


def _facts(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(path)
    sum(found.setdefault("rows", {}).values())
    return found


def _events(path: Path) -> list[Event]:
    events = read_events(path)
    for event in events:
        if isinstance(event, Step):
            math.fsum((event.step, event.total, event.loss, event.grad_norm, event.learning_rate, event.memory_gb))
        elif isinstance(event, HeldOut):
            math.fsum((event.step, event.value))
    return events


def _evaluation(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(path)
    str(found["difference"][found["main_metric"]]["verdict"])
    list(found.setdefault("findings", []))
    return found


def _forecast(path: Path) -> None:
    found = read_json(path)
    float(found["forecast"]["memory_gb"]["total"])


def _rejected(path: Path) -> list[dict[str, Any]]:
    found = read_jsonl(path)
    for each in found:
        each.get("reason")
    return found


def _peft(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(path)
    ", ".join(found.get("modules_to_save") or [])
    return found
