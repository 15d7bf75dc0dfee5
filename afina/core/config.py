"""Settings: each declared once, with its flags, its bounds and, under it, its meaning.

A section is a frozen pydantic model. The command line and YAML files are derived from the models
(`fields` lists them), and `build` makes a model of plain values or says everything that is wrong with them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

from annotated_types import MinLen
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticUndefined

from afina.core.errors import SettingsError, brief, near, shortened
from afina.core.files import read_text
from afina.core.limits import YAML_CHARACTERS
from afina.core.limits.yaml_text import NotYaml, parse_yaml
from afina.core.registry import OneOf
from afina.core.text import lowered, shell_word


class Settings(BaseModel):
    """The root of every section: values cannot be changed, and unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )
    in_file: ClassVar[bool] = False
    """Whether the command line reads these settings from a YAML file too (`--config`)."""

    @field_validator("*")
    @classmethod
    def _alone(cls, value: Any, info: ValidationInfo) -> Any:
        """Of a setting and the one that it replaces only one is given; one at its default is not."""
        other = _instead_of(cls, info.field_name or "")
        default = cls.model_fields[other].default if other else None
        if other and value is not None and info.data.get(other, default) != default:
            raise ValueError(f"{other} is given too, which it replaces: give one of them")
        return value


class Result(BaseModel):
    """The root of what jobs return: its fields are the keys of the JSON object, without those that were not set."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


S = TypeVar("S", bound=Settings)


def _listed(value: Any) -> Any:
    return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value


LISTED = BeforeValidator(_listed)
"""For a tuple that the command line takes in one flag, with commas between."""
Words = Annotated[tuple[str, ...], LISTED]


def setting(
    default: Any,
    *flags: str,
    positional: str = "",
    metavar: str = "",
    repeated: bool = False,
    instead_of: str = "",
    **bounds: Any,
) -> Any:
    """A field with what the command line needs to know of it, and pydantic's bounds (`gt`, `le`, …).

    `flags` are aliases of a section's `--section.name`; at the top level they replace `--name`. `positional` names a
    field that is given without a flag; `metavar` stands for its value in the help; a `repeated` flag is given once for
    each item of a tuple. `instead_of` is an earlier field of the section that this one replaces.
    """
    extra: dict[str, Any] = {
        "flags": list(flags), "positional": positional, "metavar": metavar, "repeated": repeated,
        "instead_of": instead_of,
    }  # fmt: skip
    return Field(default, json_schema_extra={name: value for name, value in extra.items() if value}, **bounds)


def _instead_of(model: type[Settings], name: str) -> str:
    extra = model.model_fields[name].json_schema_extra
    return str(extra.get("instead_of", "")) if isinstance(extra, dict) else ""


def section(default: Any = ..., only: tuple[str, ...] = (), without: tuple[str, ...] = ()) -> Any:
    """A section whose settings have their flags at the top level: `--name` in the place of `--section.name`.

    The command line takes `only` these of its settings (dotted paths below it), or all `without` these.
    """
    return Field(default, json_schema_extra={"flat": True, "only": list(only), "without": list(without)})


@dataclass(frozen=True)
class FieldInfo:
    """One setting as the command line shows it.

    `path` is dotted, from the root of the settings; `group` the section under whose name it is listed. A `positional`
    (its name) has no flags. `switch` is a flag without value, `text` one whose value is taken literally; `many` takes
    several values, `least` of them at least; `instead_of` is the path of the setting that it replaces, or "".
    """

    path: str
    flags: tuple[str, ...]
    group: str
    positional: str
    metavar: str
    help: str
    default: Any
    required: bool
    switch: bool
    text: bool
    repeated: bool
    many: bool
    least: int
    choices: tuple[str, ...]
    instead_of: str


def fields(model: type[Settings], prefix: str = "") -> Iterator[FieldInfo]:
    """All settings of `model` and of the sections in it, in order of declaration."""
    yield from _fields(model, prefix, prefix, prefix.rstrip("."))


def _fields(model: type[Settings], prefix: str, shown: str, group: str) -> Iterator[FieldInfo]:
    """`prefix` leads to the model in the settings, `shown` in the names of its flags."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        extra: dict[str, Any] = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            below = f"{path}."
            flat = "flat" in extra
            for info in _fields(field.annotation, below, shown if flat else f"{shown}{name}.", name):
                own = info.path.removeprefix(below)
                if own not in extra.get("without", ()) and own in (extra.get("only") or (own,)):
                    yield info
            continue
        yield FieldInfo(
            path=path,
            flags=() if extra.get("positional") else _flags(f"{shown}{name}", extra.get("flags", ())),
            group=group,
            positional=extra.get("positional", ""),
            metavar=extra.get("metavar", name.upper()),
            help=" ".join((field.description or "").split()),
            default=None if field.default is PydanticUndefined else field.default,
            required=field.is_required(),
            switch=field.annotation is bool and not field.default,
            text=_takes_text(field.annotation),
            repeated=bool(extra.get("repeated")),
            many=get_origin(field.annotation) is tuple,
            least=next((each.min_length for each in field.metadata if isinstance(each, MinLen)), 0),
            choices=_choices(field),
            instead_of=prefix + other if (other := _instead_of(model, name)) else "",
        )


def _flags(path: str, own: list[str]) -> tuple[str, ...]:
    if "." in path:
        return tuple(dict.fromkeys([f"--{path}", *own]))
    return tuple(own) or (f"--{path.replace('_', '-')}",)


def file_section(model: type[Settings]) -> str | None:
    """The dotted path of the section that a YAML file gives ("": all of `model`), or None."""
    if model.in_file:
        return ""
    return next(
        (
            name
            for name, field in model.model_fields.items()
            if isinstance(field.annotation, type)
            and issubclass(field.annotation, Settings)
            and field.annotation.in_file
        ),
        None,
    )


def _choices(field: Any) -> tuple[str, ...]:
    """The words that a setting takes, where it takes only these (or nothing, or several of them)."""
    inner = [each for member in get_args(field.annotation) for each in getattr(member, "__metadata__", ())]
    for each in [*field.metadata, *inner]:
        if isinstance(each, OneOf):
            return each.registry.names()
    return next((get_args(member) for member in _members(field.annotation) if get_origin(member) is Literal), ())


def _takes_text(annotation: Any) -> bool:
    """Whether the model reads a flag's value as it was typed (text, paths, lists with commas); others are YAML."""
    return any(m in (str, Path) or get_origin(m) in (Literal, tuple) for m in _members(annotation))


def _members(annotation: Any) -> list[Any]:
    """The types of a union, without their validators."""
    union = get_args(annotation) if get_origin(annotation) in (UnionType, Union) else (annotation,)
    return [get_args(member)[0] if get_origin(member) is Annotated else member for member in union]


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


def overridden(model: type[Settings], under: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`under` with `values`, by dotted path, laid on it. What one of them replaces is dropped from `under`, and so is
    what would replace one of them."""
    tree = merge(under, nest(values))
    for info in fields(model):
        for one, other in ((info.path, info.instead_of), (info.instead_of, info.path)):
            if info.instead_of and values.get(one) is not None and other not in values:
                *sections, name = other.split(".")
                node = tree
                for section in sections:
                    node = node[section]
                node.pop(name, None)
    return tree


_CONFIGURATION = "give a file of `name: value` lines, such as the config.yaml of a run"


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `SettingsError` where there is none."""
    try:
        value = parse_yaml(read_text(path, 4 * YAML_CHARACTERS, SettingsError))
    except OSError as error:
        raise SettingsError(f"cannot read the configuration {path}: {error.strerror}", _CONFIGURATION) from error
    except ValueError as error:
        where = f":{error.line}" if isinstance(error, NotYaml) and error.line else ""
        raise SettingsError(f"{path}{where} is not valid YAML: {brief(error)}", _CONFIGURATION) from error
    if not isinstance(value, dict):
        raise SettingsError(f"{path} is a {type(value).__name__}, expected settings by name", _CONFIGURATION)
    return value


def build(model: type[S], values: dict[str, Any]) -> S:
    """The settings that `values` describe. Raises one `SettingsError` that lists every problem."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        known = {info.path: info for info in fields(model)}
        raise SettingsError([_explain(problem, known) for problem in error.errors()]) from error


def changed(settings: S, values: dict[str, Any]) -> S:
    """A copy of `settings` with other `values`, by dotted path, validated as a whole.

    Raises `SettingsError` as `build` does.
    """
    return build(type(settings), overridden(type(settings), settings.model_dump(exclude_unset=True), values))


# What is wrong, by pydantic's name of the problem, where its own words are those of a programmer.
_WRONG = {
    "dict_type": "it takes names with their values, such as '{name: 8}'",
    "bool_parsing": "it takes true or false",
    "bool_type": "it takes true or false",
    "int_parsing": "it takes a whole number",
    "int_from_float": "it takes a whole number",
    "int_type": "it takes a whole number",
    "float_parsing": "it takes a number",
    "float_type": "it takes a number",
}


def _explain(problem: Any, known: dict[str, FieldInfo]) -> str:
    location = [str(part) for part in problem["loc"]]
    path = next((".".join(location[:n]) for n in (4, 3, 2, 1) if ".".join(location[:n]) in known), ".".join(location))
    if problem["type"] == "extra_forbidden":
        return f"unknown setting {path!r}.{near(path, list(known))}"
    info = known.get(path)
    if problem["type"] == "missing":
        below = (each for each in known.values() if each.path.startswith(f"{path}.") and each.required)
        info = info or next(below, None)
        if info is None or not info.positional:
            given = f"; give {info.flags[-1]} {info.metavar}: {lowered(info.help)}" if info else ""
            return f"{info.flags[-1] if info else path} is missing{given}"
        return f"no {info.positional} was given: {lowered(info.help)}"
    if info is None and problem["type"] == "value_error":  # of settings that do not fit together
        return str(problem["ctx"]["error"])
    name = (info.positional or info.flags[-1]) if info else path
    wrong = str(problem["ctx"]["error"]) if problem["type"] == "value_error" else problem["msg"]
    wrong = _WRONG.get(problem["type"], wrong)
    return f"{name} is {shortened(problem['input'], 300)}: {lowered(wrong)}"


def given(settings: Settings) -> Iterator[tuple[FieldInfo, Any]]:
    """The settings that were given and are neither None nor empty, with their values, in order of declaration."""
    for info in fields(type(settings)):
        node: Any = settings
        *sections, name = info.path.split(".")
        for section in sections:
            node = getattr(node, section) if node and section in node.model_fields_set else None
        if node and name in node.model_fields_set and getattr(node, name) not in (None, (), {}):
            yield info, getattr(node, name)


def typed(info: FieldInfo, value: Any) -> str:
    """A setting as it is typed on the command line."""
    if info.switch:
        return info.flags[-1] if value else ""
    listed = value if isinstance(value, tuple) else (value,)
    if info.positional:
        return " ".join(shell_word(str(each)) for each in listed)
    values = listed if info.repeated else (value,)
    return " ".join(f"{info.flags[-1]} {shell_word(_flag_text(each))}" for each in values)


def _flag_text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, bool | dict | list) else str(value)


def command(words: str, settings: Settings) -> str:
    """The command line that gives `settings` to the job called `words`; positionals come first."""
    parts = sorted(given(settings), key=lambda part: not part[0].positional)
    return " ".join(["afina", words, *filter(None, (typed(*part) for part in parts))])


def json_object(result: BaseModel) -> Any:
    """What `--json` prints of a job's result: plain objects, without what was not set."""
    return result.model_dump(mode="json", exclude_unset=True)
