"""Settings: each declared once, with its flags, its bounds and, under it, its meaning.

A section is a frozen pydantic model. The command line and YAML files are derived from the models
(`fields` lists them), and `build` makes a model of plain values or says everything that is wrong with them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from afina.core.errors import SettingsError, near
from afina.core.registry import OneOf


class Settings(BaseModel):
    """The root of every section: values cannot be changed, and unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


S = TypeVar("S", bound=Settings)


def setting(default: Any, *flags: str, **bounds: Any) -> Any:
    """A field with short `flags` beside its full one (`--section.name`) and pydantic's bounds (`gt`, `le`, …)."""
    return Field(default, json_schema_extra={"flags": list(flags)}, **bounds)


@dataclass(frozen=True)
class FieldInfo:
    """One setting as the command line shows it: dotted `path`, `flags`, `help`, whether it is a yes/no switch, and its choices."""

    path: str
    flags: tuple[str, ...]
    help: str
    default: Any
    switch: bool
    text: bool
    choices: tuple[str, ...]


def fields(model: type[Settings], prefix: str = "") -> Iterator[FieldInfo]:
    """All settings of `model` and of the sections in it, in order of declaration."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield from fields(field.annotation, f"{path}.")
            continue
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        flags = [f"--{path}", *(str(flag) for flag in extra.get("flags", []))]  # type: ignore[union-attr]
        if "." not in path:
            flags = [flag.replace("_", "-") for flag in flags]
        yield FieldInfo(
            path=path,
            flags=tuple(dict.fromkeys(flags)),
            help=" ".join((field.description or "").split()),
            default=field.default,
            switch=field.annotation is bool,
            text=_takes_text(field.annotation),
            choices=_choices(field),
        )


def _choices(field: Any) -> tuple[str, ...]:
    """The words that a setting takes, where it takes only these (or nothing, or several of them)."""
    inner = [each for member in get_args(field.annotation) for each in getattr(member, "__metadata__", ())]
    for each in [*field.metadata, *inner]:
        if isinstance(each, OneOf):
            return each.registry.names()
    annotation = field.annotation
    members = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return next((get_args(member) for member in members if get_origin(member) is Literal), ())


def _takes_text(annotation: Any) -> bool:
    """Whether a flag's word is the value itself (text, a path, one of some words), not a number or a list to be read."""
    members = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return any(member in (str, Path) or get_origin(member) is Literal for member in members)


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """{'lora.rank': 8} → {'lora': {'rank': 8}}."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *sections, name = path.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return tree


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`under` with the values of `over` laid on it, section by section."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `SettingsError` where there is none."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise SettingsError(f"{path} holds a {type(value).__name__}, expected settings as `name: value` lines")
    return value


def build(model: type[S], values: dict[str, Any]) -> S:
    """The settings that `values` describe. Raises one `SettingsError` that lists every problem."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        known = {info.path: info for info in fields(model)}
        raise SettingsError([_explain(problem, known) for problem in error.errors()]) from error


def changed(settings: S, values: dict[str, Any]) -> S:
    """A copy of `settings` with other `values`, by dotted path, validated as a whole. Raises `SettingsError` as `build` does."""
    return build(type(settings), merge(settings.model_dump(exclude_unset=True), nest(values)))


def _explain(problem: Any, known: dict[str, FieldInfo]) -> str:
    location = [str(part) for part in problem["loc"]]
    path = next((".".join(location[:n]) for n in (3, 2, 1) if ".".join(location[:n]) in known), ".".join(location))
    if problem["type"] == "extra_forbidden":
        return f"unknown setting {path!r}.{near(path, list(known))}"
    name = known[path].flags[-1] if path in known else path
    if problem["type"] == "missing":
        return f"{name} is missing"
    return f"{name} is {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
