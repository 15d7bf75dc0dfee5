"""The training: three questions, all other settings for experts, a forecast, and the buttons that begin it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from starlette.responses import Response

from afina.core.config import build, command, merge, nest, overridden
from afina.core.errors import AfinaError, InputError
from afina.jobs import JOBS
from afina.settings import RunSettings
from afina.ui.studio import plans
from afina.ui.studio.findings import refused
from afina.ui.studio.forms import groups, typed_in, values
from afina.ui.studio.pages._preparing import WATCHED, Data, alphabetical, begin_run, catalogue, forecast, last_asked
from afina.ui.studio.view import Call, Page, Route, base_name, go, link
from afina.ui.studio.words import Refused, Told, recorded
from afina.ui.studio.work import Work

_SPOKEN = 0.1  # of the rows: a language of the data with more matters until somebody says otherwise


@dataclass(frozen=True)
class _Asked:
    """What an address or a form asks for. `given` are the settings for experts by dotted path, `typed` the same as
    text; `problem` says why there is no `forecast`, or why it failed; `seen` is what it found, where it is done."""

    data: Data
    base: str
    answers: plans.Answers
    typed: dict[str, str]
    given: dict[str, Any]
    problem: AfinaError | None
    forecast: Work | None
    seen: dict[str, Any] | None
    plan: plans.Plan | None

    @classmethod
    def of(cls, call: Call) -> "_Asked":
        data, base, typed = Data.chosen(call), call.text("base"), typed_in(call.form)
        rows = sum(data.languages.values()) or 1
        spoken = [code for code, count in data.languages.items() if count >= _SPOKEN * rows]
        answers, given = plans.Answers.of(call.form, spoken), dict[str, Any]()
        problem: AfinaError | None = None
        found: tuple[Work | None, dict[str, Any] | None, plans.Plan | None] = None, None, None
        if base and not data.missing:
            try:
                given = values(typed, call.workspace, call.words)
                found = _foreseen(call, data, base, answers, given)
            except AfinaError as error:
                problem = error
                if data.path and not isinstance(error, Refused):
                    problem = refused(call.words, recorded(error), data.path)
        return cls(data, base, answers, typed, given, problem, *found)

    @property
    def query(self) -> dict[str, str]:
        """The address that asks for the same."""
        found = {"data": self.data.name, "base": self.base} | self.answers.query() | self.typed
        return {name: value for name, value in found.items() if value}

    @property
    def fits(self) -> bool:
        return self.seen is None or self.seen["fits"] or bool(self.given.get("allow_swap"))

    def settings(self, job: str, more: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the run for `job`, with `more` by dotted path."""
        skipped = plans.left_out(self.given, job)
        kept = {path: value for path, value in self.given.items() if path not in skipped}
        return overridden(RunSettings, _run(self.data, self.base, kept), dict(more))


def _run(data: Data, base: str, given: Mapping[str, Any]) -> dict[str, Any]:
    return merge({"base": base, "data": data.settings}, nest(dict(given)))


def _foreseen(
    call: Call, data: Data, base: str, answers: plans.Answers, given: Mapping[str, Any]
) -> tuple[Work | None, dict[str, Any] | None, plans.Plan | None]:
    """The work that forecasts, what it found, and the plan, each where there is one. Raises what stands against it."""
    run = _run(data, base, given)
    method = build(RunSettings, run).method
    if method not in plans.METHODS:
        return None, None, plans.plan(answers, None, 0)
    del run["base"]
    for name in ("method", "last_layers"):
        run.pop(name, None)
    work = forecast(call, data, base, method, run)
    if work.state == "failed":
        raise Told(work.error)
    if not work.ended:
        return work, None, None
    if work.state != "done":
        return work, None, plans.plan(answers, None, 0)
    found = work.result
    seen = found["methods"][method]
    if "error" in seen:
        raise InputError(seen["error"])
    return work, seen, plans.plan(answers, seen, found["work"]["rows"])


def _show(call: Call) -> Response:
    if not call.form and (last := last_asked(call)):
        return go("/train", **last)
    asked = _Asked.of(call)
    if not call.form.items() <= asked.query.items():  # fields of a form that say nothing, which no address needs
        return go("/train", **asked.query)
    return _page(call, asked)


def _page(call: Call, asked: _Asked, status: int = 200) -> Response:
    data, plan = asked.data, asked.plan
    shared: dict[str, Any] = {"step": "train", "data": data, "base": asked.base}
    if data.missing or not asked.base:
        missing = data.missing or "no_base"
        errors, files = data.errors(call.words), call.workspace.usable_files()
        return call.page("train_missing.html", missing=missing, files=files, errors=errors, **shared)
    skipped = plans.left_out(asked.given, plan.job) if plan else []
    sent = {path: value for path, value in asked.given.items() if path not in skipped} | (plan.settings if plan else {})
    named = call.words.setting
    return call.page(
        "train.html", status, asked=asked, plan=plan, seen=asked.seen, sent=sent,
        skipped=list(map(named, skipped)), not_compared=list(map(named, plans.left_out(asked.given, "compare"))),
        told=[_said(call, *each) for each in plan.told] if plan else [],
        groups=groups(asked.typed, call.words), files=[each.name for each in call.workspace.usable_files()],
        can_search=find_spec("optuna") is not None and find_spec("sklearn") is not None,
        qualities=plans.QUALITIES, minutes=plans.MINUTES, **_languages(call, asked),
        remedies=[_remedy(call, asked, each) for each in plans.remedies(asked.seen or {})],
        not_too_long=[(each, link("/train", **asked.query | {"data.too_long": each})) for each in ("drop", "cut")],
        swap=link("/train", **asked.query | {"allow_swap": "true"}),
        command=_command(asked) if plan else "", **shared,
    )  # fmt: skip


def _languages(call: Call, asked: _Asked) -> dict[str, Any]:
    """The languages that can be chosen, and of those chosen what base and data lack."""
    entries = catalogue()
    entry, chosen = entries.get(asked.base), asked.answers.languages
    known = {code for each in entries.values() for code in each["languages"]} | {*chosen}
    first = dict.fromkeys([*asked.data.languages, *plans.LANGUAGES])

    def named(codes: Iterable[str]) -> list[tuple[str, str]]:
        return [(code, (name := call.words.language_name(code))[:1].upper() + name[1:]) for code in codes]

    return {
        "languages": named(first), "listed": entry is not None,
        "more": named(code for code, _ in alphabetical(call.words, known - first.keys())),
        "base_lacks": named(code for code in chosen if entry and code not in entry["languages"]),
        "data_lack": named(plans.unknown_to_data(chosen, asked.data.languages)),
    }  # fmt: skip


def _said(call: Call, key: str, given: Mapping[str, Any]) -> str:
    words = call.words
    shown = {
        name: words.time(value) if name == "seconds"
        else value if isinstance(value, str)
        else words.number(value, int(isinstance(value, float)))
        for name, value in given.items()
    }  # fmt: skip
    return words(f"train.{key}", **shown)


def _remedy(call: Call, asked: _Asked, remedy: plans.Remedy) -> dict[str, Any]:
    """A remedy in words, with the address that takes it."""
    words = call.words
    keys = {path: f"train.remedy_{path.rpartition('.')[2]}" for path in remedy.settings}
    known = [words(key, value=remedy.settings[path]) for path, key in keys.items() if words.has(key)]
    base = {"base": remedy.base} if remedy.base else {}
    return {
        "text": " + ".join(known) or base_name(remedy.base) or ", ".join(keys),
        "link": link("/train", **asked.query | remedy.settings | base),
        "memory": remedy.memory_gb, "seconds": remedy.seconds,
    }  # fmt: skip


def _work_of(asked: _Asked, job: str) -> dict[str, Any]:
    """The settings of the job that the answers ask for, without a folder."""
    assert asked.plan
    run = asked.settings(job, asked.plan.settings)
    if job == "train":
        return merge(run, WATCHED)
    return ({"minutes": asked.plan.minutes} if job == "tune" else {}) | {"run": run}


def _command(asked: _Asked) -> str:
    assert asked.plan
    return command(asked.plan.job, build(JOBS[asked.plan.job].load().settings, _work_of(asked, asked.plan.job)))


def _start(call: Call) -> Response:
    """Begins what the answers ask for; where the forecast stands against it, the page says why."""
    asked = _Asked.of(call)
    return _begin(call, asked, asked.plan.job if asked.plan else "train")


def _compare(call: Call) -> Response:
    """Begins a comparison of methods with the same settings."""
    return _begin(call, _Asked.of(call), "compare")


def _begin(call: Call, asked: _Asked, job: str) -> Response:
    if asked.problem:
        return _page(call, asked, 400)
    if asked.plan is None or not asked.fits:
        return go("/train", **asked.query)
    return begin_run(call, job, _work_of(asked, job), asked.data.stem)


PAGE = Page(
    "train",
    (
        Route("GET", "/train", _show),
        Route("POST", "/train", _start),
        Route("POST", "/train/compare", _compare),
    ),
)
