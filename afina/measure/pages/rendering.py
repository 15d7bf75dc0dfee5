"""Pages of one file each, readable without a network, from the templates beside this file."""

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afina.core.errors import counted
from afina.core.text import command_line, visible

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"


def _code(text: str) -> "Markup":
    """Text with what stands in backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(visible(text)))))  # noqa: S704 - it is escaped


def _shown(value: Any) -> Any:
    """What a page shows of a value: of text, marks for what would act or turn the direction of writing. A plot, which
    is no text, stays as it is."""
    return visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def environment(folder: Path) -> "Environment":
    """Jinja with the templates of `folder` and those beside this file, which escapes all text."""
    from jinja2 import Environment, FileSystemLoader

    made = Environment(loader=FileSystemLoader([folder, TEMPLATES]), autoescape=True, trim_blocks=True)
    made.filters["command"] = lambda words: command_line(*words)
    made.filters["counted"] = counted
    made.filters["code"] = _code
    return made


def style_source(style: bytes) -> str:
    """By what a security policy allows one stylesheet."""
    return f"'sha256-{b64encode(sha256(style).digest()).decode()}'"


def render_page(template: str, **values: Any) -> str:
    """The page that `templates/<template>` makes of `values`, in one file: it holds the stylesheet, which its security
    policy allows by its hash."""
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    made = environment(TEMPLATES)
    made.finalize = _shown
    return made.get_template(template).render(style=style, source=style_source(style.encode()), **values)
