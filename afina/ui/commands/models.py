"""`afina models`: list, show, pull, cache."""

from typing import TYPE_CHECKING

from afina.core.config import Settings
from afina.core.errors import enumerated
from afina.models.sources.catalogue import Entry, known_models, licences
from afina.ui.common import View, show_facts, size

if TYPE_CHECKING:
    from afina.jobs.models.cache import CacheResult, CacheSettings
    from afina.jobs.models.list import ListModelsResult
    from afina.jobs.models.show import ModelFacts, ShowModelSettings

_KINDS = {
    "base": "continues texts; it has not been taught to follow instructions",
    "instruct": "follows instructions and answers questions",
    "encoder": "reads a text and names its class; it writes nothing",
    "seq2seq": "reads a text and writes another (an encoder-decoder)",
}
_USE = {"yes": "commercial use is allowed", "terms": "commercial use under conditions", "no": "no commercial use"}
_SHORT_USE = {"yes": "", "terms": ", under conditions", "no": ", not commercially"}
_WHAT = {"package": "model of a package", "hub": "model of the hub", "made": "built by Afina, and rebuilt when needed"}


def _show_list(settings: Settings, result: "ListModelsResult") -> None:
    found = result.root
    if not found:
        print("no model of the catalogue is like this; any model of the hub can be given as owner/model")
        return
    memory = "; memory" if any("needs_gb" in facts for facts in found.values()) else ""
    print(f"{'name':32} {'size':>6}  {'kind':8} {'context':>14}  licence; languages{memory}")
    for name, facts in found.items():
        entry = known_models()[name]
        print(
            f"{name:32} {size(entry.parameters):>6}  {entry.kind:8} {entry.context_length:>7,} tokens  "
            f"{entry.licence}{_SHORT_USE[entry.commercial]}; {enumerated(entry.languages, 6)}"
            + (f"; LoRA in {facts['needs_gb']:.1f} GB" if "needs_gb" in facts else "")
        )
    if any(facts["commercial"] == "terms" for facts in found.values()):
        print("under conditions: commercial use is allowed within limits; `afina models show NAME` says which")


def _show(settings: "ShowModelSettings", result: "ModelFacts") -> None:
    if "commercial" in result.root:
        print("\n".join(_lines(known_models()[settings.name])))
    else:
        show_facts(result.root, 15)


def _lines(entry: Entry) -> list[str]:
    """What the catalogue knows of a model, for a person."""
    licence = licences()[entry.licence]
    gate = {True: "the hub asks you to accept terms first (gated)", False: "free to fetch", None: ""}[entry.gated]
    package = entry.package
    fetched = f"{package.size_mb} MB" if package else f"about {2 * entry.parameters / 1e9:.1f} GB in 16 bits"
    where = f"package {package.name} of the Python index" if package else f"{entry.hub_id} on the hub"
    lines = [
        f"{entry.title} ({entry.name})",
        f"what it is:   {size(entry.parameters)} parameters, {entry.family}; {_KINDS[entry.kind]}",
        f"licence:      {entry.licence}: {_USE[licence.commercial]}{f' ({licence.note})' if licence.note else ''}",
        f"languages:    {enumerated(entry.languages, 30)}",
        f"reads up to:  {entry.context_length:,} tokens",
        f"fetched from: {where}, {fetched}{f'; {gate}' if gate else ''}",
    ]
    if entry.tokenizer or entry.template:
        both = [entry.tokenizer or "", f"chat template {entry.template}" if entry.template else ""]
        lines.append(f"text:         {', '.join(filter(None, both))}")
    if entry.note:
        lines.append(f"note:         {entry.note}")
    lines += [f"good at:      {each.task}: {each.claim} [{each.source}]" for each in entry.strengths]
    lines += [f"read at:      {', '.join(each.facts)}: {each.url}" for each in entry.sources]
    return [*lines, f"use it:       afina train DATA --base {entry.name}"]


def _show_cache(settings: "CacheSettings", result: "CacheResult") -> None:
    if not isinstance(result.root, tuple):
        print(f"{settings.name}: {result.root.freed / 1e6:.0f} MB freed")
        return
    for each in result.root:
        print(f"{each.name:32} {each.bytes / 1e6:>9.1f} MB  {_WHAT[each.kind]}  {each.path}")
    print(f"{sum(each.bytes for each in result.root) / 1e6:.1f} MB in all")


VIEWS = {
    "models list": View(_show_list),
    "models show": View(_show),
    "models pull": View(_show),
    "models cache": View(_show_cache),
}
