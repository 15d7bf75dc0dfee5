"""What three answers become: how long, how good, and which languages matter, as the settings of a training.

Time decides how many rows are seen, by the forecast of one training as it is set; quality decides of how many it wants
to see, or that settings are searched for. Languages set nothing: they are compared with what base and data know.
"""

import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from afina.ui.studio.forms import settings_of_flags

Quality = Literal["look", "good", "best"]
QUALITIES: tuple[Quality, ...] = ("look", "good", "best")
MINUTES = (5, 15, 60, 240, 720)
LANGUAGES = ("en", "pt", "es", "fr", "de", "it")  # those that are told from one another in data
METHODS = ("lora", "full", "head")  # those that there are forecasts for
_LOOK = 0.25  # of the rows that a good training sees
_FEWEST = 8  # rows that are seen at least, however little time there is
_SEARCH, _SHORT_SEARCH = 8, 4  # whole trainings that a search should have time for, and has too little time under
_LEAST_MINUTES = 5
_TICK = re.compile(r"speaks\.([a-z]{2,3})")
_SPOKEN = 0.02  # of the rows: a language with fewer is not in the data
# A search chooses these itself, and a comparison trains each method with rates that it finds, from the base in full.
_NOT_SEARCHED = ("method", "last_layers", "train.learning_rate", "train.tokens_per_batch", "lora")
_NOT_COMPARED = ("method", "last_layers", "train.learning_rate", "train.early_stopping", "quantize")


@dataclass(frozen=True)
class Answers:
    """`minutes` is None where it may take as long as it needs."""

    minutes: int | None
    quality: Quality
    languages: tuple[str, ...]

    @classmethod
    def of(cls, form: Mapping[str, Any], spoken: Sequence[str]) -> "Answers":
        """Those in the fields of a form; where nothing was asked yet, the languages are those `spoken` in the data."""
        given = str(form.get("minutes", ""))
        quality: Quality = next((each for each in QUALITIES if each == form.get("quality")), "good")
        ticked = [match[1] for name, value in form.items() if value == "yes" and (match := _TICK.fullmatch(name))]
        return cls(
            int(given) if given in map(str, MINUTES) else None, quality,
            tuple(ticked if "asked" in form else spoken),
        )  # fmt: skip

    def query(self) -> dict[str, str]:
        """The same as fields of an address."""
        ticked = {f"speaks.{code}": "yes" for code in self.languages}
        return {"minutes": str(self.minutes or ""), "quality": self.quality, "asked": "1"} | ticked


@dataclass(frozen=True)
class Plan:
    """The `job` that does it, the settings by dotted path that the answers became, and how long it takes in all (None:
    unknown). `told` says so in words: keys of texts, with what is put into them."""

    job: Literal["train", "tune"]
    settings: dict[str, Any]
    minutes: float | None
    seconds: float | None
    told: tuple[tuple[str, dict[str, Any]], ...]


def plan(answers: Answers, seen: Mapping[str, Any] | None, rows: int) -> Plan:
    """`seen` is the forecast of the training as it is set, on `rows` rows, before the answers count."""
    if seen is None:
        return Plan("train", {}, None, None, (("plan_unknown", {}),))
    whole = seen["seconds"] + seen["evaluation_seconds"]
    if answers.quality == "best":
        return _search(answers.minutes, whole)
    full = rows * seen["epochs"]
    a_row = seen["epoch_seconds"] / rows
    fixed = whole - full * a_row
    wanted = full if answers.quality == "good" else min(full, max(_FEWEST, full * _LOOK))
    seeing, told = wanted, []
    if answers.minutes is not None and fixed + wanted * a_row > 60 * answers.minutes:
        seeing = max(_FEWEST, (60 * answers.minutes - fixed) / a_row)
        told.append(("plan_cut", {"minutes": answers.minutes, "share": f"{seeing / wanted:.0%}"}))
    seeing = min(round(seeing), round(full))
    seconds = fixed + seeing * a_row
    if answers.minutes is not None and seconds > 1.1 * 60 * answers.minutes:
        told.append(("plan_least", {"seconds": seconds}))
    times = seeing / rows
    told.append(("plan_part" if times < 1 else "plan_times", {"rows": rows, "times": times, "seeing": seeing}))
    changed = {"train.rows": seeing} if seeing < round(full) else {}
    return Plan("train", changed, None, seconds, tuple(told))


def _search(minutes: int | None, whole: float) -> Plan:
    enough = max(_LEAST_MINUTES, math.ceil(_SEARCH * whole / 60))
    taken = minutes or enough
    told: list[tuple[str, dict[str, Any]]] = [("plan_search", {"minutes": taken})]
    if 60 * taken < _SHORT_SEARCH * whole:
        told.append(("plan_short", {"minutes": enough}))
    return Plan("tune", {}, float(taken), 60.0 * taken, tuple(told))


def left_out(values: Mapping[str, Any], job: str) -> list[str]:
    """Of settings by dotted path those that a search or a comparison does not take."""
    names = {"tune": _NOT_SEARCHED, "compare": _NOT_COMPARED}.get(job, ())
    return [path for path in values if any(path == name or path.startswith(f"{name}.") for name in names)]


def unknown_to_data(languages: Sequence[str], counts: Mapping[str, int]) -> list[str]:
    """Of the languages that can be told those that hardly a row is in."""
    rows = sum(counts.values())
    return [code for code in languages if code in LANGUAGES and counts.get(code, 0) < _SPOKEN * rows]


@dataclass(frozen=True)
class Remedy:
    """What would make it fit: settings as they are typed, by dotted path, or another base; and what it then takes."""

    settings: dict[str, str]
    base: str
    memory_gb: float
    seconds: float


def remedies(seen: Mapping[str, Any]) -> Iterator[Remedy]:
    """Those that the forecast names, the least costly first."""
    for each in seen.get("remedies", ()):
        yield Remedy(settings_of_flags(shlex.split(each["flags"])), "", each["memory_gb"], each["seconds"])
    for each in seen.get("bases", ()):
        yield Remedy({}, each["base"], each["memory_gb"], each["seconds"])
