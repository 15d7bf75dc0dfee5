"""The settings of a training as a form: what each means, what it takes and its default, all from their declaration."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from afina.core.config import FieldInfo, fields
from afina.core.limits.yaml_text import parse_yaml
from afina.settings import RunSettings
from afina.ui.studio.words import SIGNS, Words
from afina.ui.studio.workspace import Workspace

# What the page says itself, what it asks the machine for, files that lie outside the workspace, what other pages are
# for, and trackers, which tell other machines.
_NOT_SHOWN = frozenset(
    {"base", "out", "overwrite", "device", "cache_dir", "template", "adapter", "force", "export", "track"}
    | {"train.samples"}
)
_DATA = frozenset(  # the other settings of data say how the file is read, which is kept with it
    {"learn", "references", "limit", "held_out", "eval_path", "held_out_rows", "test", "test_path", "test_rows", "seed"}
    | {"max_length", "too_long"}
)
_FILES = frozenset({"data.eval_path", "data.test_path"})
_FRACTION = re.compile(r"[-+]?(\d+|\d{1,3}(\.\d{3})+),\d+(e[-+]?\d+)?", re.IGNORECASE)  # as Portuguese writes it
_THOUSANDS = re.compile(r"\d{1,3}(\.\d{3})+")
_YES_NO = ("true", "false")


@dataclass(frozen=True)
class Field:
    """A setting as a form shows it: `typed` is what was typed, `default` is empty where the default is found by rule.
    It is one of `choices` where there are some; a `file` is one of the workspace."""

    path: str
    help: str
    default: str
    typed: str
    choices: tuple[str, ...]
    kind: Literal["text", "choice", "file"]


def groups(typed: Mapping[str, str], words: Words) -> dict[str, list[Field]]:
    """The fields by the section that they are in (`run` for those that are in none), with what was typed."""
    found: dict[str, list[Field]] = {}
    for info in _shown():
        choices = _YES_NO if _is_yes_or_no(info.path) else info.choices
        kind: Literal["text", "choice", "file"] = "file" if info.path in _FILES else "choice" if choices else "text"
        default = _text(info.default)
        if isinstance(info.default, float) and words.language == "pt":
            default = default.translate(SIGNS)
        field = Field(info.path, info.help, default, typed.get(info.path, ""), choices, kind)
        found.setdefault(info.group or "run", []).append(field)
    return found


def typed_in(form: Mapping[str, Any]) -> dict[str, str]:
    """By dotted path what was typed into a form's fields, where it is not the default."""
    texts = {info.path: (form.get(info.path), _text(info.default)) for info in _shown()}
    stripped = {path: (given.strip(), default) for path, (given, default) in texts.items() if isinstance(given, str)}
    return {path: given for path, (given, default) in stripped.items() if given not in ("", default)}


def values(typed: Mapping[str, str], workspace: Workspace, words: Words) -> dict[str, Any]:
    """The same as the settings take it, by dotted path; numbers are as the reader's language writes them. Raises
    `InputError` where a file is not in the workspace."""
    known = {info.path: info for info in _shown()}
    return {path: _value(text, known[path], workspace, words) for path, text in typed.items()}


def settings_of_flags(words: list[str]) -> dict[str, str]:
    """By dotted path the texts of flags as they are typed in a terminal: `--lora.rank 8`."""
    paths = {flag: info.path for info in fields(RunSettings) for flag in info.flags}
    return {paths[flag]: text for flag, text in zip(words[::2], words[1::2], strict=True)}


def _shown() -> Iterator[FieldInfo]:
    for info in fields(RunSettings):
        section, _, name = info.path.rpartition(".")
        if name in _DATA if section == "data" else info.path not in _NOT_SHOWN:
            yield info


def _value(text: str, info: FieldInfo, workspace: Workspace, words: Words) -> Any:
    if info.path in _FILES:
        return str(workspace.data_file(text))
    if info.text:
        return text
    kinds = _kinds(info.path)
    is_local = _FRACTION.fullmatch(text) or (float not in kinds and _THOUSANDS.fullmatch(text))
    if is_local and words.language == "pt" and tuple not in kinds:
        text = text.translate(SIGNS).replace(",", "")
    try:
        return parse_yaml(text)
    except ValueError:
        return text  # the settings say what is wrong with it


def _text(value: Any) -> str:
    """A default as one would type it."""
    if value is None or value in ((), {}):
        return ""
    if isinstance(value, bool):
        return _YES_NO[not value]
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_yes_or_no(path: str) -> bool:
    return bool in _kinds(path)


def _kinds(path: str) -> set[Any]:
    """The types that a setting's value may have, of a tuple without those of its parts."""
    *sections, name = path.split(".")
    model: Any = RunSettings
    for section in sections:
        model = model.model_fields[section].annotation
    annotation = model.model_fields[name].annotation
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return {get_origin(each) or each for each in parts}
