"""Graphics cards: what they are called, and why one cannot be used, in words."""

import os
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

from afina.core.errors import brief, counted

VISIBLE = "CUDA_VISIBLE_DEVICES"  # the variable by which a user hides cards


class Unusable(NamedTuple):
    """What is wrong with a card, and what to do."""

    problem: str
    remedy: str


_TORCH = "install the torch that https://pytorch.org names for this machine"
# By what torch says, in the order in which it is looked for.
_SAID: tuple[tuple[str, Unusable], ...] = (
    ("driver on your system is too old", Unusable(
        "the graphics driver is too old for this torch ({build})", f"update the driver, or {_TORCH} and an older CUDA",
    )),
    ("Found no NVIDIA driver", Unusable("there is no NVIDIA driver", "install it, where there is a card")),
    ("not compiled with CUDA", Unusable("this torch is built without CUDA", f"{_TORCH}, where there is a card")),
    ("no kernel image", Unusable("this torch ({build}) has no code for a card of its generation", _TORCH)),
    ("busy or unavailable", Unusable("another program has the card for itself", "end it (`nvidia-smi` lists it)")),
    ("out of memory", Unusable("the card is full", "end other programs on it (`nvidia-smi` lists them)")),
    ("No CUDA GPUs are available", Unusable("there is no NVIDIA card, or it is hidden", f"unset {VISIBLE}")),
)  # fmt: skip


def in_words(error: BaseException) -> Unusable:
    """Why a device cannot be used, of what torch raised when it was tried."""
    for said, found in _SAID:
        if said in str(error):
            return found._replace(problem=found.problem.format(build=gpu_build() or "without CUDA"))
    return Unusable(brief(error), "restart what uses the card, or its driver")


def gpu_build() -> str | None:
    """What cards this torch is built for: 'CUDA 13.0', 'ROCm 6.4'; None where it is for the processor alone."""
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    return f"CUDA {torch.version.cuda}" if torch.version.cuda else None


def device_name(device: torch.device) -> str:
    """A card's name as its driver gives it; another device's kind."""
    if device.type == "cpu":
        return "the processor"
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else device.type


def has_cards() -> bool:
    """Whether torch can compute on a card of NVIDIA's or AMD's. It warns of drivers that are too old: `unused_card`
    says that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.is_available()


def card_count() -> int:
    return torch.cuda.device_count() if has_cards() else 0


def unused_card() -> Unusable | None:
    """Why a card of NVIDIA's that is in this machine is not used; None where it is, or there is none."""
    if has_cards() or not has_device_files():
        return None
    if gpu_build() is None:
        problem = "there is an NVIDIA card, and this torch is built without CUDA"
        return Unusable(problem, "install torch from https://pytorch.org with CUDA")
    if os.environ.get(VISIBLE) in ("", "-1"):
        return Unusable(f"there is an NVIDIA card, and {VISIBLE} hides it", f"unset {VISIBLE}")
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return in_words(error)
    return Unusable("there is an NVIDIA card, and torch cannot use it", "update the graphics driver")


def has_device_files() -> bool:
    """Whether Linux knows a card of NVIDIA's."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def cards_in_words() -> str:
    """'1 card: cuda:0 (NVIDIA T4)'."""
    names = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(card_count())]
    return f"{counted(len(names), 'card')}: {', '.join(names)}" if names else "no card"
