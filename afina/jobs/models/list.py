"""`models list`: the catalogue of base models, or those of it that suit a task, a language, a licence, this machine."""

from pathlib import Path
from typing import Any

from pydantic import RootModel

from afina.core.config import Settings, setting
from afina.core.device import cache_folder
from afina.core.errors import SettingsError, near
from afina.core.events import Listener, ignore
from afina.core.job import Job
from afina.jobs.models.show import entry_facts
from afina.models.sources.catalogue import TASKS, known_models, licences, select


class ListModelsSettings(Settings):
    task: str | None = setting(None, "--kind", metavar="TASK")
    """Models for this task, those recommended for it first."""
    language: str | None = setting(None, metavar="XX")
    """Models for this language (en, pt, …)."""
    licence: str | None = setting(None, "--license", metavar="WHICH")
    """`commercial`, or the name of a licence."""
    fits: bool = False
    """Models that LoRA adapts in this machine's memory, with what that takes."""
    cache_dir: Path | None = setting(None, metavar="DIR")
    """Where downloaded models are kept."""


class ListModelsResult(RootModel[dict[str, dict[str, Any]]]):
    """The facts of each model by its name; with `fits`, `needs_gb` too."""


def list(settings: ListModelsSettings, listener: Listener = ignore) -> ListModelsResult:
    """Selects from the catalogue. Raises `SettingsError` where it knows no such task, language or licence."""
    _check(settings)
    commercial = settings.licence == "commercial"
    found = select(known_models().values(), settings.task, settings.language, commercial)
    if settings.licence and not commercial:
        found = [entry for entry in found if entry.licence == settings.licence]
    if not settings.fits:
        return ListModelsResult({entry.name: entry_facts(entry) for entry in found})
    from afina.forecast.expected import bases_that_fit

    needs = bases_that_fit(found, cache_folder(settings.cache_dir))
    return ListModelsResult(
        {e.name: entry_facts(e) | {"needs_gb": needs[e.name] / 1e9} for e in found if e.name in needs}
    )


def _check(settings: ListModelsSettings) -> None:
    if settings.task and settings.task not in TASKS:
        raise SettingsError(
            f"--kind {settings.task!r} is no task.{near(settings.task, TASKS)}", f"it takes one of: {', '.join(TASKS)}"
        )
    known = licences()
    if settings.licence and settings.licence not in ("commercial", *known):
        raise SettingsError(
            f"--license {settings.licence!r} is not in the catalogue.{near(settings.licence, [*known])}",
            f"it takes `commercial`, or one of: {', '.join(known)}",
        )
    languages = sorted({code for entry in known_models().values() for code in entry.languages})
    if settings.language and settings.language not in languages:
        raise SettingsError(
            f"--language {settings.language!r} is no language of the catalogue.",
            f"it takes a code of two letters: {', '.join(languages)}",
        )


JOB = Job.of(list)
