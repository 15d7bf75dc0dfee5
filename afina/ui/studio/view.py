"""What a page is made with: its words in the reader's language, its templates, and what a request is about."""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode

import yaml
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from afina.core.config import build
from afina.core.errors import AfinaError
from afina.core.events import minutes
from afina.core.text import visible
from afina.jobs import JOBS
from afina.measure.pages.rendering import environment
from afina.ui.studio.guard import Keys
from afina.ui.studio.work import Queue
from afina.ui.studio.workspace import Workspace

HERE = Path(__file__).parent
LANGUAGES = ("en", "pt")
STEPS = ("data", "base", "train", "judge", "ship")
Method = Literal["GET", "POST"]
SIGNS = str.maketrans(",.", ".,")  # from English numbers to Portuguese ones
_NO_STORE = {"cache-control": "no-store"}


@cache
def texts() -> dict[str, dict[str, str]]:
    """By key (`file.name`) the text in each language, from the files in `texts/`."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted((HERE / "texts").glob("*.yaml")):
        for name, said in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            found[f"{path.stem}.{name}"] = said
    return found


def language_of(accepted: str) -> str:
    """The first language of an `Accept-Language` that there are words in."""
    ranked = []
    for position, part in enumerate(accepted.split(",")):
        name, _, weight = part.replace(" ", "").partition(";q=")
        quality = float(weight) if re.fullmatch(r"[01](\.\d{0,3})?", weight, re.ASCII) else 1.0
        ranked += [(-quality, position, name.split("-")[0].lower())] if quality else []
    return next((name for _, _, name in sorted(ranked) if name in LANGUAGES), LANGUAGES[0])


class Words:
    """`words("data.title", rows=3)` is the text of a key in one language, with what is put into it; what is put in
    shows control characters as signs."""

    def __init__(self, language: str) -> None:
        self.language = language

    def __call__(self, key: str, **values: Any) -> str:
        text = texts()[key][self.language]
        return text.format_map({name: visible(str(value)) for name, value in values.items()}) if values else text

    def has(self, key: str) -> bool:
        return key in texts()

    def language_name(self, code: str) -> str:
        """A language by its name."""
        key = f"languages.of_{code}"
        return self(key) if self.has(key) else code

    def number(self, value: float, digits: int = 0) -> str:
        shown = f"{value:,.{digits}f}"
        return shown.translate(SIGNS) if self.language == "pt" else shown

    def time(self, seconds: float) -> str:
        """42 s, 3.5 min, 2.1 h."""
        shown = minutes(seconds)
        return shown.replace(".", ",").replace("days", "dias") if self.language == "pt" else shown

    def bytes(self, count: float) -> str:
        unit, size = next(((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if count >= s), ("B", 1.0))
        return f"{self.number(count / size, 1 if size > 1 else 0)} {unit}"


@dataclass(frozen=True)
class Studio:
    """What all requests share."""

    workspace: Workspace
    queue: Queue
    keys: Keys


@dataclass(frozen=True)
class Call:
    """One request for a page. `form` has the fields of a form or of a JSON object; of a GET, those of the address."""

    studio: Studio
    request: Request
    form: Mapping[str, Any]

    @cached_property
    def words(self) -> Words:
        return Words(language_of(self.request.headers.get("accept-language", "")))

    @property
    def workspace(self) -> Workspace:
        return self.studio.workspace

    @property
    def queue(self) -> Queue:
        return self.studio.queue

    def text(self, name: str, default: str = "") -> str:
        """A field, without what stands around it."""
        found = self.form.get(name, default)
        return found.strip() if isinstance(found, str) else default

    def path(self, name: str) -> str:
        """A part of the address."""
        return str(self.request.path_params[name])

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """The page that a template makes. `step` among the values is where one is on the path."""
        return HTMLResponse(self.html(template, **values), status, _NO_STORE)

    def html(self, template: str, **values: Any) -> str:
        """The same as text."""
        made = _environment().get_template(template)
        shared = {
            "t": self.words, "form_token": self.studio.keys.form, "steps": STEPS, "call": self,
            "running": self.queue.running, "waiting": self.queue.waiting, "link": link,
        }  # fmt: skip
        found: str = made.render(**shared | values)
        return found

    def refusal(self, error: AfinaError, status: int = 400) -> Response:
        """A page that says what is wrong, and what to do."""
        return self.page("error.html", status, error=error)


def go(path: str, **query: Any) -> Response:
    """To another page, after something was done."""
    return RedirectResponse(link(path, **query), 303, _NO_STORE)


def link(path: str, **query: Any) -> str:
    """An address of this server with a query; the parts of the path are `quoted`."""
    given = {name: value for name, value in query.items() if value not in (None, "")}
    return f"{path}?{urlencode(given)}" if given else path


def quoted(name: str) -> str:
    """A name as a part of an address; slashes stay, and so do the bytes of names that are no Unicode."""
    return quote(name, safe="/", errors="surrogateescape")


def quick(job: str, settings: Mapping[str, Any]) -> Any:
    """What a job that takes no time gives, done here. Raises what it does."""
    listed = JOBS[job].load()
    return listed.function(build(listed.settings, dict(settings)))


Handler = Callable[[Call], "Response | Awaitable[Response]"]


@dataclass(frozen=True)
class Route:
    """A method and path, and the function that answers; what it raises becomes a page."""

    method: Method
    path: str
    handler: Handler


@dataclass(frozen=True)
class Page:
    """A page by its name, with its routes."""

    name: str
    routes: tuple[Route, ...]


@cache
def _environment() -> Any:
    made = environment(HERE / "templates")
    made.filters["visible"] = lambda value: visible(str(value))
    made.filters["quoted"] = quoted
    return made
