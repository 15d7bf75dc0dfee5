"""What a killed run needs to resume as if it had not been killed: a file per checkpoint; the last two stay."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from afina.core.device import on_host
from afina.core.device import random_states as device_states
from afina.core.device import set_random_states as set_device_states
from afina.core.files import write_tensors
from afina.core.world import World
from afina.data.template import Row

KEPT = 2


@dataclass
class State:
    """Where a run stands after `step` optimiser steps.

    `best` is the lowest cost so far (`HeldOut.cost`: the held-out loss in supervised learning) and `best_weights` the
    weights that have it; `since_best` counts the evaluations after it. `tokens` and `step_seconds` are those of the
    steps, `seconds` those of everything. `random` holds the state of the random numbers by kind of device, of the
    processes after the first with their rank (`cpu`, `cpu1`). `scale` is that of the loss, where the base is in fp16.
    """

    step: int = 0
    best: float = float("inf")
    since_best: int = 0
    tokens: int = 0
    step_seconds: float = 0.0
    seconds: float = 0.0
    weights: dict[str, Tensor] = field(default_factory=dict)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)
    random: dict[str, Tensor] = field(default_factory=dict)
    scale: dict[str, Tensor] = field(default_factory=dict)


_TENSORS = tuple(f.name for f in fields(State) if f.default_factory is dict)
_NUMBERS = tuple(f.name for f in fields(State) if f.name not in _TENSORS)


def fingerprint(rows: Sequence[Row], *others: Any) -> str:
    """A digest of what a run is trained on: a run is resumed with the same only."""
    digest = hashlib.sha256(repr(others).encode())
    for row in rows:
        digest.update(repr((row.input_ids, row.labels)).encode())
    return digest.hexdigest()


def random_states(world: World, device: torch.device) -> dict[str, Tensor]:
    """The state of the random numbers of all processes, each on its `device`, for `State.random`."""
    every = enumerate(world.exchange(device_states(device)))
    return {_key(kind, rank): state for rank, states in every for kind, state in states.items()}


def set_random_state(states: dict[str, Tensor], world: World, device: torch.device) -> None:
    """Puts this process's random numbers where `random_states` found them."""
    kinds = ("cpu", device.type)
    set_device_states({k: states[_key(k, world.rank)] for k in kinds if _key(k, world.rank) in states}, device)


def _key(kind: str, rank: int) -> str:
    return f"{kind}{rank or ''}"


def write(folder: Path, state: State, mark: str) -> None:
    """Adds the checkpoint to `folder`, then drops all but the last two. Raises `OutputError`."""
    there = {f"{kind}/{name}": value for kind in _TENSORS for name, value in getattr(state, kind).items()}
    tensors = {name: value.contiguous() for name, value in on_host(there).items()}
    facts = {name: getattr(state, name) for name in _NUMBERS} | {"fingerprint": mark}
    write_tensors(folder / f"step-{state.step:08}.safetensors", tensors, {"state": json.dumps(facts)})
    for path in _files(folder)[:-KEPT]:
        path.unlink(missing_ok=True)


def read_latest(folder: Path) -> tuple[State, str] | None:
    """The newest undamaged checkpoint in `folder` and its fingerprint; None where there is none."""
    for path in reversed(_files(folder)):
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["state"])
                state = State(**{name: facts[name] for name in _NUMBERS})
                for key in file.keys():  # noqa: SIM118 - not a dict
                    kind, _, name = key.partition("/")
                    getattr(state, kind)[name] = file.get_tensor(key)
            return state, facts["fingerprint"]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError):
            continue  # damaged, as by a failing disk: the one before it will do
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*.safetensors") if path.is_file())
