"""Pages of one file each, readable without a network, from the templates beside this file."""

from pathlib import Path
from typing import Any

from afina.core.errors import counted
from afina.core.text import command_line


def render_page(template: str, **values: Any) -> str:
    """The page that `templates/<template>` makes of `values`; text is escaped."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
    environment.filters["command"] = lambda words: command_line(*words)
    environment.filters["counted"] = counted
    return environment.get_template(template).render(**values)
