"""The base: the catalogue in words, what fits here, and a choice that Afina makes by trying some on the data."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from afina.core.device import cache_folder, pick_device, processor
from afina.models.footprint import free_bytes
from afina.models.sources.catalogue import CATALOGUE, TASKS, licences
from afina.models.sources.source import is_local
from afina.ui.studio.findings import on_page
from afina.ui.studio.pages._preparing import Data, alphabetical, begin_run, catalogue, forecast, lately, minutes_asked
from afina.ui.studio.view import Call, Page, Route, go, quick
from afina.ui.studio.work import Work

_FORECAST = 3  # bases on this disk for which it is forecast unasked
_LANGUAGES = 6  # that are named of a base's


@dataclass(frozen=True)
class _Card:
    """A base as it is shown: its `facts`, the names of its languages and how many more there are, how much memory it
    takes (None: unknown), and where it was forecast for the data, what was found."""

    facts: dict[str, Any]
    languages: list[str]
    more: int
    here: bool
    needs_gb: float | None
    seen: dict[str, Any] | None

    @property
    def name(self) -> str:
        return str(self.facts["name"])


def _show(call: Call) -> Response:
    data = Data.chosen(call)
    wanted = {name: call.text(name) for name in ("task", "language", "licence")}
    fitting = call.text("fits") == "yes" or "asked" not in call.form
    filters, every = {name: value for name, value in wanted.items() if value}, catalogue()
    listed = quick("models list", filters).root if filters else every
    reckoned = lately(call, "models list", {"memory": True}, processor(), CATALOGUE.stat().st_mtime)
    needs = _needs(reckoned)
    here = {name for name in every if is_local(name, cache_folder())}
    seen, pending = _forecasts(call, data, [name for name in listed if name in here])
    cards = [_card(call, facts, name in here, needs.get(name), seen.get(name)) for name, facts in listed.items()]
    spoken = {code for facts in every.values() for code in facts["languages"]}
    return call.page(
        "base.html", step="base", data=data, wanted=wanted, fitting=fitting, files=call.workspace.usable_files(),
        errors=data.errors(call.words),
        alone=len(here) == 1,
        here=[card for card in cards if card.here],
        others=[card for card in cards if not card.here and not (fitting and needs and card.needs_gb is None)],
        tasks=TASKS, licences=tuple(licences()), languages=alphabetical(call.words, spoken),
        pending=pending or (None if reckoned.ended else reckoned), choice=_choice(call, data),
    )  # fmt: skip


def _needs(reckoned: Work) -> dict[str, float]:
    """The memory that each base takes that fits now, in GB; empty while that is reckoned, once for a machine and a
    catalogue."""
    if reckoned.state != "done":
        return {}
    free = free_bytes(pick_device()) / 1e9
    return {name: facts["needs_gb"] for name, facts in reckoned.result.items() if facts.get("needs_gb", free) < free}


def _forecasts(call: Call, data: Data, names: list[str]) -> tuple[dict[str, dict[str, Any]], Work | None]:
    """What a training takes on these data by base, of the first few; and the work that forecasts the next."""
    found: dict[str, dict[str, Any]] = {}
    for name in names[:_FORECAST] if not data.missing else ():
        work = forecast(call, data, name, "lora", {"data": data.settings})
        if not work.ended:
            return found, work
        if work.state == "done":
            found[name] = work.result["methods"]["lora"]
        elif work.state == "failed" and data.path:
            found[name] = {"error": on_page(call.words, work.error["problems"][0], data.path)}
    return found, None


def _card(call: Call, facts: dict[str, Any], here: bool, needs: float | None, seen: dict[str, Any] | None) -> _Card:
    codes = facts["languages"]
    names = [call.words.language_name(code) for code in codes[:_LANGUAGES]]
    return _Card(facts, names, len(codes) - len(names), here, needs, seen)


def _choice(call: Call, data: Data) -> dict[str, Any] | None:
    """The newest choice of a base for these data that Afina was asked for, and what came of it."""
    for work in _choices(call):
        if data.path and work.settings["run"]["data"]["path"] == str(data.path):
            return {"work": work, "found": work.result if work.state == "done" else None}
    return None


def _choices(call: Call) -> Iterator[Work]:
    return (work for work in call.queue.all() if work.job == "choose")


def _choose(call: Call) -> Response:
    """Lets Afina try bases on the data. Raises `InputError` where there are none, or no minutes."""
    data = Data.chosen(call)
    if data.missing:
        return go("/base", data=data.name)
    settings: dict[str, Any] = {"minutes": minutes_asked(call), "run": {"data": data.settings}}
    if call.text("commercial") == "yes":
        settings["licence"] = "commercial"
    if call.text("download") == "yes":
        settings["download"] = True
    return begin_run(call, "choose", settings, data.stem)


PAGE = Page("base", (Route("GET", "/base", _show), Route("POST", "/base/choose", _choose)))
