"""Pages of one file each, readable without a network, from the templates beside this file."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afina.core.errors import counted
from afina.core.text import command_line

if TYPE_CHECKING:
    from markupsafe import Markup


def _code(text: str) -> "Markup":
    """Text with what stands in backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - what it marks is escaped


def render_page(template: str, **values: Any) -> str:
    """The page that `templates/<template>` makes of `values`; text is escaped."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
    environment.filters["command"] = lambda words: command_line(*words)
    environment.filters["counted"] = counted
    environment.filters["code"] = _code
    return environment.get_template(template).render(**values)
