"""What a page is made with: its words in the reader's language, its templates, and what a request is about."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Literal
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from afina.core.config import build
from afina.core.errors import AfinaError
from afina.core.text import visible
from afina.jobs import JOBS
from afina.measure.pages.rendering import environment
from afina.models.sources.catalogue import known_models
from afina.ui.studio.guard import Keys
from afina.ui.studio.words import HERE, Refused, Words, language_of
from afina.ui.studio.work import Queue
from afina.ui.studio.workspace import Workspace

STEPS = ("data", "base", "train", "judge", "ship")
Method = Literal["GET", "POST"]
_NO_STORE = {"cache-control": "no-store"}


@dataclass(frozen=True)
class Studio:
    """What all requests share."""

    workspace: Workspace
    queue: Queue
    keys: Keys
    changing: Lock = field(default_factory=Lock)
    """Held by what changes something: two clicks find one name, and begin one piece of work."""


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
            "running": self.queue.running, "waiting": self.queue.waiting, "servers": self.queue.servers, "link": link,
            "at": quoted(self.request.scope["path"]),
        }  # fmt: skip
        found: str = made.render(**shared | values)
        return found

    def refusal(self, error: AfinaError) -> Response:
        """A page that says what is wrong, and what to do."""
        return self.page("error.html", error.status if isinstance(error, Refused) else 400, error=error)

    def told(self, error: AfinaError) -> str:
        """The same on lines."""
        if not isinstance(error, Refused):
            return str(error)
        return "\n".join(filter(None, error.said(self.words)))


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


def base_name(base: str) -> str:
    """What the page calls a base: by the catalogue's title, or the last part of its path."""
    if entry := known_models().get(base):
        return entry.title
    return path.name if (path := Path(base)).is_absolute() else base


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
    made.filters["base"] = base_name
    return made
