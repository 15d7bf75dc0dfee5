"""What a base and a training are chosen for: the data as they were read, forecasts, and folders for new runs."""

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unicodedata import normalize

from starlette.responses import Response

from afina.core.config import build, merge
from afina.jobs import JOBS
from afina.ui.studio.findings import Said, findings
from afina.ui.studio.view import Call, go, quick
from afina.ui.studio.words import Refused, Words
from afina.ui.studio.work import Work

WATCHED = {"train": {"samples": 3}}  # settings of a training that is watched: prompts that it answers meanwhile
_FRESH = 600.0  # seconds for which what was forecast is believed: other programs take memory, and give it back
_LONGEST = 24 * 60.0  # minutes that a choice may be asked to take
_NAME = 90  # letters of a file's name that runs on it are called by


@dataclass(frozen=True)
class Data:
    """The file called `name` that was chosen, at `path` if it is there, and the newest look at all of its rows as the
    file is now."""

    name: str
    path: Path | None
    check: Work | None

    @classmethod
    def chosen(cls, call: Call) -> "Data":
        name = call.text("data")
        try:
            path = call.workspace.data_file(name) if name else None
        except Refused:
            path = None
        check = call.queue.of(name, ("data check",)) if path else None
        return cls(name, path, check if check and path and check.asked_at >= path.stat().st_ctime else None)

    @property
    def stem(self) -> str:
        """What runs on them are called by."""
        return Path(self.name).stem

    @property
    def missing(self) -> str:
        """What stands against a training with them, as a key of texts, or nothing."""
        if self.path is None:
            return "gone" if self.name else "no_data"
        if self.check is None or self.check.state in ("failed", "stopped", "died"):
            return "unseen"
        if not self.check.ended:
            return "checking"
        return "" if self.check.result["ready"] else "not_ready"

    def errors(self, words: Words) -> list[Said]:
        """What has to be mended in them, as the newest look found it."""
        if self.missing != "not_ready" or self.check is None or self.path is None:
            return []
        return [each for each in findings(words, self.check.result, self.path) if each.severity == "error"]

    @property
    def settings(self) -> dict[str, Any]:
        """How they are read, as they were looked at."""
        found: dict[str, Any] = self.check.settings["data"] if self.check else {}
        return found

    @property
    def languages(self) -> dict[str, int]:
        """In how many rows each language was seen, the most frequent first."""
        found = {} if self.missing or self.check is None else self.check.result["languages"]
        return {code: rows for code, rows in found.items() if code != "?"}


def last_asked(call: Call) -> dict[str, str]:
    """The data and base that a training was last forecast for, or the data that were last looked at, as fields of an
    address; nothing where the file is gone."""
    found = next((work for work in call.queue.all() if work.job in ("fit", "data check")), None)
    if found is None or all(path.name != found.about for path in call.workspace.data_files()):
        return {}
    return {"data": found.about} | ({"base": str(found.settings["base"])} if found.job == "fit" else {})


def forecast(call: Call, data: Data, base: str, method: str, run: Mapping[str, Any]) -> Work:
    """The work that forecasts a training of `base` with the settings `run`, in which the data are: one that was done
    lately, or a new one. Raises `SettingsError` where the settings are wrong."""
    since = max(data.path.stat().st_ctime if data.path else 0.0, time.time() - _FRESH)
    settings = {"base": base, "method": method, "run": merge(dict(run), WATCHED)}
    return lately(call, "fit", settings, data.name, since)


def lately(call: Call, job: str, settings: dict[str, Any], about: str, since: float) -> Work:
    """The newest work of these settings on `about` that was begun `since` then, or a new one."""
    checked = build(JOBS[job].load().settings, settings)
    asked = checked.model_dump(mode="json", exclude_unset=True)
    found = call.queue.of(about, (job,), lambda work: work.asked_at >= since and work.settings == asked)
    return found or call.queue.add(job, checked, about)


@cache
def catalogue() -> dict[str, dict[str, Any]]:
    """The facts of each base that is known by name."""
    found: dict[str, dict[str, Any]] = quick("models list", {}).root
    return found


def alphabetical(words: Words, codes: Iterable[str]) -> list[tuple[str, str]]:
    """Languages by their code and name, in the order of their names."""
    return sorted(((code, words.language_name(code)) for code in codes), key=lambda each: each[1].casefold())


def begin_run(call: Call, job: str, settings: dict[str, Any], name: str) -> Response:
    """Queues the job in a new folder for its run or search, which is called by `name`, and goes to its page."""
    out = new_run(call, name, "" if job == "train" else f"-{call.words(f'work.called_{job}')}")
    run = settings if job == "train" else settings["run"]
    run["out"] = str(out)
    return go(f"/work/{call.queue.add(job, settings, call.workspace.run_name(out)).id}")


def new_run(call: Call, name: str, suffix: str = "") -> Path:
    """A folder for a run, which no other piece of work has or waits for, by the letters of `name` that a served model's
    name may have."""
    taken = {work.about for work in call.queue.all()}
    letters = normalize("NFKD", name).encode("ascii", "ignore").decode()
    plain = (re.sub(r"[^\w-]+", "-", letters).strip("-_")[:_NAME] or "run") + suffix
    return call.workspace.new_folder(call.workspace.runs, plain, taken)


def minutes_asked(call: Call) -> float:
    """How long a choice or a search may take. Raises `Refused`."""
    given = call.text("minutes").replace(",", ".")
    try:
        found = float(given)
    except ValueError:
        found = 0.0
    if not 0 < found <= _LONGEST:
        raise Refused("minutes", given=given[:20], most=f"{_LONGEST:.0f}")
    return found
