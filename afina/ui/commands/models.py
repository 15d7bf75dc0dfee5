"""`afina models`."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afina.core.errors import SettingsError, near
from afina.ui.common import say, size

if TYPE_CHECKING:
    from afina.models.sources.catalogue import Entry


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=["list", "show", "pull", "cache"],
        help="the catalogue, the facts of a model, a download, or what was downloaded",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="catalogue name, hub id, folder or .gguf file")
    parser.add_argument("--kind", metavar="TASK", help="list: models that do this task, those praised for it first")
    parser.add_argument("--language", metavar="XX", help="list: models that know this language (en, pt, …)")
    parser.add_argument("--license", metavar="WHICH", help="list: `commercial`, or the name of a licence")
    parser.add_argument(
        "--fits",
        action="store_true",
        help="list: models that LoRA adapts in this machine's memory, with what that takes",
    )
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub model")
    parser.add_argument("--delete", action="store_true", help="cache: take NAME away")
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="where downloaded models are kept [$AFINA_CACHE, else the user's cache folder]",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    from afina.models.sources.catalogue import known_models

    if options.delete and (options.action != "cache" or not options.name):
        raise SettingsError("--delete goes with `afina models cache NAME`", "`afina models cache` lists the names")
    if options.action == "cache":
        return _cache(options)
    if options.action == "list":
        if options.name:
            raise SettingsError(
                f"afina models list takes no name, {options.name!r} was given", "afina models show NAME"
            )
        return _list(options)
    if not options.name:
        raise SettingsError(f"afina models {options.action} needs a NAME", "`afina models list` shows the catalogue")
    if options.kind or options.language or options.license or options.fits:
        raise SettingsError("--kind, --language, --license and --fits go with `afina models list`", "leave them out")
    entry = known_models().get(options.name)
    if options.action == "show" and entry and not options.revision:
        if options.json:
            say(json.dumps(_facts(entry)))
        else:
            say("\n".join(_told(entry)))
        return 0
    from afina.models.load import describe

    card = describe(options.name, revision=options.revision, cache_dir=options.cache_dir).card()
    if options.json:
        say(json.dumps(card))
        return 0
    for key, value in card.items():
        if value is not None:
            shown = f"{value:,}" if isinstance(value, int) else ", ".join(value) if isinstance(value, tuple) else value
            say(f"{key.replace('_', ' '):15} {shown}")
    return 0


def _list(options: argparse.Namespace) -> int:
    from afina.models.sources.catalogue import TASKS, known_models, licences, select

    if options.kind and options.kind not in TASKS:
        raise SettingsError(
            f"--kind {options.kind!r} is no task.{near(options.kind, TASKS)}", f"it takes one of: {', '.join(TASKS)}"
        )
    if options.license and options.license not in ("commercial", *licences()):
        raise SettingsError(
            f"--license {options.license!r} is not in the catalogue.{near(options.license, list(licences()))}",
            f"it takes `commercial`, or one of: {', '.join(licences())}",
        )
    spoken = sorted({code for entry in known_models().values() for code in entry.languages})
    if options.language and options.language not in spoken:
        raise SettingsError(
            f"--language {options.language!r} is no language of the catalogue.",
            f"it takes a code of two letters: {', '.join(spoken)}",
        )
    commercial = options.license == "commercial"
    found = select(known_models().values(), options.kind, options.language, commercial)
    if options.license and not commercial:
        found = [entry for entry in found if entry.licence == options.license]
    needs: dict[str, int] = {}
    if options.fits:
        from afina.core.device import cache_folder
        from afina.jobs.fit import fitting

        needs = fitting(found, cache_folder(options.cache_dir))
        found = [entry for entry in found if entry.name in needs]
    if options.json:
        more = {name: {"needs_gb": needs[name] / 1e9} for name in needs}
        say(json.dumps({entry.name: _facts(entry) | more.get(entry.name, {}) for entry in found}))
        return 0
    if found:
        say(f"{'name':32} {'size':>6}  {'kind':8} {'context':>14}  licence; languages" + ("; memory" if needs else ""))
    for entry in found:
        use = {"yes": "", "terms": ", under conditions", "no": ", not commercially"}[entry.commercial]
        say(
            f"{entry.name:32} {size(entry.parameters):>6}  {entry.kind:8} {entry.context_length:>7,} tokens  "
            f"{entry.licence}{use}; {_languages(entry, 6)}"
            + (f"; LoRA in {needs[entry.name] / 1e9:.1f} GB" if needs else "")
        )
    if not found:
        say("no model of the catalogue is so; any model of the hub can be given as owner/model")
    elif any(entry.commercial == "terms" for entry in found):
        say("under conditions: commercial use is allowed within limits; `afina models show NAME` says which")
    return 0


def _cache(options: argparse.Namespace) -> int:
    from afina.core.device import cache_folder
    from afina.models.sources.caches import list_cached, remove_cached

    cache = cache_folder(options.cache_dir)
    if options.delete:
        freed = remove_cached(options.name, cache)
        say(json.dumps({"freed": freed}) if options.json else f"{options.name}: {freed / 1e6:.0f} MB freed")
        return 0
    found = [each for each in list_cached(cache) if options.name in (None, each.name)]
    if options.name and not found:
        raise SettingsError(
            f"nothing called {options.name!r} is in the caches", "`afina models cache` lists what there is"
        )
    if options.json:
        say(json.dumps([{"name": e.name, "kind": e.kind, "bytes": e.size, "path": str(e.path)} for e in found]))
        return 0
    words = {"package": "model of a package", "hub": "model of the hub", "made": "made by Afina, and again when needed"}
    for each in found:
        say(f"{each.name:32} {each.size / 1e6:>9.1f} MB  {words[each.kind]}  {each.path}")
    say(f"{sum(each.size for each in found) / 1e6:.1f} MB in all")
    return 0


_KINDS = {
    "base": "continues texts; it has not been taught to follow instructions",
    "instruct": "follows instructions and answers questions",
    "encoder": "reads a text and names its class; it writes nothing",
    "seq2seq": "reads a text and writes another (an encoder-decoder)",
}


def _facts(entry: "Entry") -> dict[str, Any]:
    """An entry as one JSON object, with what its licence allows."""
    return entry.model_dump(mode="json") | {"commercial": entry.commercial}


def _told(entry: "Entry") -> list[str]:
    """What is known of a model, for a person."""
    from afina.models.sources.catalogue import licences

    licence = licences()[entry.licence]
    use = {"yes": "commercial use is allowed", "terms": "commercial use under conditions", "no": "no commercial use"}
    gate = {True: "the hub asks you to accept terms first (gated)", False: "free to fetch", None: ""}[entry.gated]
    package = entry.package
    fetched = f"{package.size_mb} MB" if package else f"about {2 * entry.parameters / 1e9:.1f} GB in 16 bits"
    where = f"package {package.name} of the Python index" if package else f"{entry.hub_id} on the hub"
    lines = [
        f"{entry.title} ({entry.name})",
        f"what it is:   {size(entry.parameters)} parameters, {entry.family}; {_KINDS[entry.kind]}",
        f"licence:      {entry.licence}: {use[licence.commercial]}{f' ({licence.note})' if licence.note else ''}",
        f"languages:    {_languages(entry, 30)}",
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


def _languages(entry: "Entry", most: int) -> str:
    rest = len(entry.languages) - most
    return ", ".join(entry.languages[:most]) + (f" and {rest} more" if rest > 0 else "")
