"""`models show`: the facts of a base model: size, licence, languages, what it is recommended for."""

from pathlib import Path
from typing import Any

from pydantic import RootModel

from afina.core.config import Settings, setting
from afina.core.events import Listener, ignore
from afina.core.job import Job
from afina.models.sources.catalogue import Entry, known_models


class ShowModelSettings(Settings):
    name: str = setting(..., positional="NAME")
    """Name of the catalogue, hub id, folder or .gguf file."""
    revision: str | None = setting(None, metavar="REV")
    """Branch, tag or commit of a hub model."""
    cache_dir: Path | None = setting(None, metavar="DIR")
    """Where downloaded models are kept."""


class ModelFacts(RootModel[dict[str, Any]]):
    """What the catalogue says of a model, or what its own files say where it is not in the catalogue."""


def show(settings: ShowModelSettings, listener: Listener = ignore) -> ModelFacts:
    """Raises `BaseModelError` where there is no such model."""
    entry = known_models().get(settings.name)
    if entry and not settings.revision:
        return ModelFacts(entry_facts(entry))
    return model_facts(settings)


def entry_facts(entry: Entry) -> dict[str, Any]:
    """An entry of the catalogue as one JSON object, with what its licence allows."""
    return entry.model_dump(mode="json") | {"commercial": entry.commercial}


def model_facts(settings: ShowModelSettings) -> ModelFacts:
    """What the model's own files say, which are fetched where they are not on this disk."""
    from afina.models.load import describe  # late: the catalogue answers without torch

    return ModelFacts(describe(settings.name, revision=settings.revision, cache_dir=settings.cache_dir).card())


JOB = Job.of(show)
