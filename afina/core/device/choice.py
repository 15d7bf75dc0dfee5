"""Which device a run computes on, and where downloads and measurements are kept."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from afina.core.config import Settings
from afina.core.device.cards import Unusable, card_count, cards_in_words, device_name, has_cards, in_words
from afina.core.device.formats import Precision, native_format, precision_of
from afina.core.device.memory import device_memory, memory_in_words
from afina.core.device.queue import use
from afina.core.errors import OutputError, SettingsError, near
from afina.core.files import check_writable
from afina.core.process.homes import cache_home, lasts

TAKEN = ("cpu", "cuda", "cuda:N", "mps")
_NAME = re.compile(r"cpu|cuda(:(0|[1-9][0-9]?))?|mps(:0)?")
_MEANT = {"rocm": "cuda", "hip": "cuda", "nvidia": "cuda", "amd": "cuda", "gpu": "cuda", "metal": "mps"}


class Compute(Settings):
    """What the arithmetic of a run is done by, with nothing left open but the device (None is the best that is
    there)."""

    device: str | None
    precision: Precision
    threads: int


class Card(Settings):
    """A graphics card that a run can be given (`--device`), with its number format. Memory in bytes, as the driver
    says it."""

    device: str
    name: str
    memory: int
    free: int
    precision: Precision
    reason: str


def cache_folder(given: Path | None = None) -> Path:
    """Where downloads, prepared rows, kernels and measurements are kept: `given` (`--cache-dir`), else the folder
    that the environment variable AFINA_CACHE names, else the user's cache folder."""
    return given or cache_home()


OTHER_CACHE = "name another folder for the cache with --cache-dir DIR, or in the environment as AFINA_CACHE"


def unkept(cache: Path) -> str:
    """Why nothing can be kept in `cache` for later runs, in words; '' where all is well."""
    if not lasts(cache):
        return f"nothing is kept for the next run, there is no home folder: {OTHER_CACHE}"
    try:
        check_writable(cache / "kept")
    except OutputError as error:
        return f"nothing is kept for the next run, {error.problems[0]}: {OTHER_CACHE}"
    return ""


def is_device(name: str) -> bool:
    """Whether a device can be called so, by the spelling alone. A processor has no number, and takes all of itself."""
    return _NAME.fullmatch(name) is not None


def no_device(name: str, others: Sequence[str] = ()) -> SettingsError:
    """Of a `name` that is no device's: what is taken instead, `others` included. Without any, it may be the name of a
    machine that is not here, of which only a forecast knows."""
    small = name.lower()
    meant = f"cuda:{int(name)}" if re.fullmatch("[0-9]{1,2}", name) else _MEANT.get(small, small * is_device(small))
    guess = f" Did you mean {meant!r}?" if meant else near(name, ["cpu", "cuda", "mps", *others])
    what, beside = (" or machine", "") if others else ("", "; a card by its name (h100) only `afina fit` takes")
    return SettingsError(
        f"--device {name!r} is no device{what}.{guess}", f"it takes {', '.join((*TAKEN, *others))}{beside}"
    )


def pick_device(name: str | None = None) -> torch.device:
    """The device called `name` ('cpu', 'cuda', the second card 'cuda:1', 'mps'), or: the first card, then Apple's MPS,
    then the processor. A card is from then on the one that torch itself takes in this thread. Raises `SettingsError`
    where there can be none called so, or it cannot be used, in words of its own for a card that is not there, is full,
    or has an old driver.
    """
    if not name:
        name = "cuda" if has_cards() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not is_device(name):
        raise no_device(name)
    found = _tried(torch.device(name))
    if isinstance(found, torch.device):
        return found
    raise SettingsError(f"--device {name!r} cannot be used here: {found.problem}", f"{found.remedy}; or use cpu")


def _tried(device: torch.device) -> torch.device | Unusable:
    """The device, after it has held a number."""
    if device.type == "mps" and not torch.backends.mps.is_available():
        return Unusable(
            "there is no graphics of Apple's that this torch can use", "it takes macOS 14 and Apple silicon"
        )
    if device.type == "cuda" and (count := card_count()) and (device.index or 0) >= count:
        return Unusable(f"this machine has {cards_in_words()}", "name one of these")
    try:
        torch.zeros(1, device=device).tolist()
        use(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        found = in_words(error)
        with suppress(RuntimeError, AssertionError):  # a card that is full may have no room for questions
            if "out of memory" in str(error):
                return found._replace(problem=f"{found.problem}: no number fits into {memory_in_words(device)}")
        return found
    return device


def usable_cards() -> tuple[Card, ...]:
    """The cards that torch can compute on."""
    names = [f"cuda:{i}" for i in range(card_count())] + ["mps"] * torch.backends.mps.is_available()
    return tuple(_card(torch.device(name)) for name in names)


def _card(device: torch.device) -> Card:
    dtype, reason = native_format(device)
    total = free = 0
    with suppress(RuntimeError):  # a card that is full may have no room for questions
        held = device_memory(device)
        total, free = held.limit, held.free
    return Card(
        device=str(device), name=device_name(device), memory=total, free=free, precision=precision_of(dtype),
        reason=reason,
    )  # fmt: skip
