"""What is found and refused in data, in the reader's words: the page's sentences, and where there are none, those of
the job with the page's controls in the place of flags."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from afina.core.config import fields
from afina.core.text import visible
from afina.data.mapping import ColumnTemplate
from afina.settings import RunSettings
from afina.ui.studio.words import Told, Words

SEVERITIES = ("error", "warning", "note")
_UNSAID = frozenset({"no tokenizer"})  # the page says it itself
_DETAILED = frozenset({"template", "mapping", "encoding", "pairs", "verdicts", "parts", "holes"})
"""Findings of which the page's sentence does not say all: what the check says stands beside it."""
_PAIR = " like "  # between the places of two rows that are much alike
_FLAG = re.compile(r"--[a-z][\w.-]*\w")
_CONTROLS = {  # settings of data that the page of a file has a control for
    "data.encoding": "data.encoding", "data.prompt": "data.reads", "data.completion": "data.answers",
    "data.system": "data.system", "data.map": "data.map", "data.kind": "data.task",
}  # fmt: skip


@dataclass(frozen=True)
class Said:
    """A finding in words. `english` is what the check itself says, where that is needed. Of the first rows `rows` has
    the places of each, and how many tokens it has ("" where that is not the matter)."""

    code: str
    severity: str
    words: str
    english: str
    rows: list[tuple[list[str], str]]


def findings(words: Words, found: Mapping[str, Any], path: Path) -> list[Said]:
    """Those of a check of the file at `path`, the gravest first."""
    known = [each for each in found.get("findings", ()) if each["code"] not in _UNSAID]
    return [_said(words, each, path) for each in sorted(known, key=lambda each: SEVERITIES.index(each["severity"]))]


def _said(words: Words, found: Mapping[str, Any], path: Path) -> Said:
    sentences, facts = " ".join(_sentences(words, found)), found.get("facts", {})
    english = "" if sentences and found["code"] not in _DETAILED else on_page(words, found["text"], path)
    sizes = [words("data.tokens", count=words.number(each)) for each in facts.get("tokens", ())]
    places = [[short(each, path) for each in row.split(_PAIR)] for row in found.get("rows", ())]
    return Said(
        found["code"], found["severity"], sentences, english,
        list(zip(places, [*sizes, *[""] * (len(places) - len(sizes))], strict=True)),
    )  # fmt: skip


def _sentences(words: Words, found: Mapping[str, Any]) -> Iterator[str]:
    """`found.CODE`, then `found.more_CODE` with what it names, and what is done about it."""
    code, facts = found["code"].replace(": ", "_").replace(" ", "_"), found.get("facts", {})
    general, more = f"found.{found['code'].partition(':')[0].replace(' ', '_')}", f"found.more_{code}"
    if words.has(general):
        yield words(general, count=words.number(found.get("count", 0)))
    needs_none = words.has(more) and "{" not in words(more)
    if words.has(more) and (facts or needs_none):
        yield words(more, **{name: _fact(words, value) for name, value in facts.items()})
    if done := facts.get("done"):
        yield words(f"found.done_{done}")


def _fact(words: Words, value: Any) -> str:
    if isinstance(value, dict):  # languages, with their shares
        return ", ".join(f"{words.language_name(code)} {words.number(100 * share)} %" for code, share in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(f"“{each}”" for each in value)
    return value if isinstance(value, str) else words.number(value, int(isinstance(value, float)))


def short(text: str, path: Path) -> str:
    """What names files of the workspace, without the folder of the one at `path`."""
    return text.replace(str(path), path.name).replace(f"{path.parent}{os.sep}", "")


def on_page(words: Words, text: str, path: Path) -> str:
    """What a job says of the file at `path`, with its name alone, and with labels in the place of flags."""
    flags = {flag: info.path for info in fields(RunSettings) for flag in info.flags}

    def labelled(match: re.Match[str]) -> str:
        if (setting := flags.get(match[0])) is None:
            return match[0]
        return f"“{words(_CONTROLS[setting]) if setting in _CONTROLS else words.setting(setting)}”"

    return _FLAG.sub(labelled, short(text, path)).replace("” NAME", "”")


def refused(words: Words, error: Mapping[str, Any], path: Path) -> Told:
    """What was recorded of a refusal of the file at `path`, as a page tells it."""
    problems = [on_page(words, each, path) for each in error["problems"]]
    return Told({"kind": error["kind"], "problems": problems, "remedy": on_page(words, error["remedy"], path)})


def sentence(words: Words, prompt: str, completion: str) -> Markup:
    """What is read and answered, with the names of columns marked."""
    shown = {"prompt": _columns(prompt), "completion": _columns(completion)}
    return escape(words("data.sentence")).format(**shown)


def _columns(template: str) -> Markup:
    parts = ColumnTemplate(template, "").parts
    return Markup().join(
        escape(visible(part))
        if isinstance(part, str)
        else Markup("<code>{}</code>").format(visible(part[0].rstrip("?")))
        for part in parts
    )
