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
    """Models that LoRA adapts in the memory that is free here, with the least that it takes."""
    memory: bool = False
    """Add the least memory in which LoRA adapts each; some seconds for all of them."""
    cache_dir: Path | None = setting(None, metavar="DIR")
    """Where downloaded models are kept."""


class ListModelsResult(RootModel[dict[str, dict[str, Any]]]):
    """The facts of each model by its name; with `fits` or `memory`, `needs_gb` too where it is known."""


def list(settings: ListModelsSettings, listener: Listener = ignore) -> ListModelsResult:
    """Selects from the catalogue. Raises `SettingsError` where it knows no such task, language or licence."""
    _check(settings)
    commercial = settings.licence == "commercial"
    found = select(known_models().values(), settings.task, settings.language, commercial)
    if settings.licence and not commercial:
        found = [entry for entry in found if entry.licence == settings.licence]
    facts = {entry.name: entry_facts(entry) for entry in found}
    if not (settings.fits or settings.memory):
        return ListModelsResult(facts)
    from afina.forecast.expected import bases_that_fit, least_memory

    needs = (bases_that_fit if settings.fits else least_memory)(found, cache_folder(settings.cache_dir))
    told = {name: facts[name] | {"needs_gb": bytes / 1e9} for name, bytes in needs.items()}
    return ListModelsResult(told if settings.fits else facts | told)


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
