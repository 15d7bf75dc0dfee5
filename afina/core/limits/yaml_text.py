"""YAML of limited size: aliases are counted as what they stand for, so that ten lines are not a billion values."""

from typing import Any

import yaml

from afina.core.errors import brief, counted
from afina.core.files import nested_deeply
from afina.core.limits import NESTING, YAML_CHARACTERS, YAML_VALUES


class NotYaml(ValueError):
    """What is wrong with a document, and in which `line`, counted from 1, where that is known."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line


def parse_yaml(text: str) -> Any:
    """The value of a YAML document. Raises `NotYaml` where it is not one, or beyond the limits of `core.limits`."""
    if len(text) > YAML_CHARACTERS:
        raise NotYaml(f"it has more than {YAML_CHARACTERS:,} characters")
    try:
        value = yaml.load(text, _Loader)  # noqa: S506 - a safe loader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise NotYaml(error.problem or brief(error), line) from error
    except (yaml.YAMLError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        raise NotYaml(brief(error)) from error
    if nested_deeply(value):
        raise NotYaml(f"it is nested more than {NESTING} deep")
    return value


def front_matter(text: str) -> Any:
    """The value of the YAML between two lines of `---` at the head of a Markdown file; None where there is none. Raises
    `NotYaml`."""
    first, _, rest = text.removeprefix("\ufeff").partition("\n")
    head, closed, _ = rest.partition("\n---")
    return parse_yaml(head) if first.rstrip() == "---" and closed else None


_NUMBER_CHARACTERS = 1000  # Python neither reads nor writes those of more than 4,300 digits


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._count = 0
        self._sizes: dict[int, int] = {}  # values within each node, aliases written out

    def compose_node(self, parent: Any, index: Any) -> Any:
        is_alias, before = self.check_event(yaml.AliasEvent), self._count
        node = super().compose_node(parent, index)
        if is_alias:
            if id(node) not in self._sizes:
                raise yaml.YAMLError("a value contains itself")
            self._count += self._sizes[id(node)]
        else:
            if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":int") and len(node.value) > _NUMBER_CHARACTERS:
                raise yaml.YAMLError(f"a number has {counted(len(node.value), 'character')}")
            self._count += 1
            self._sizes[id(node)] = self._count - before
        if self._count > YAML_VALUES:
            raise yaml.YAMLError(f"it stands for more than {YAML_VALUES:,} values")
        return node
