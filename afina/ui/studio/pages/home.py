"""The beginning: where one is on the path, and what is there already."""

from starlette.responses import Response

from afina.ui.studio.view import Call, Page, Route

_LATELY = 5  # pieces of work


def _home(call: Call) -> Response:
    recent = [work for work in call.queue.all() if work.heavy][:_LATELY]
    return call.page("home.html", step="home", recent=recent)


PAGE = Page("home", (Route("GET", "/", _home),))
