"""The HTTP side of serving: the API of OpenAI, with what Afina has beside, over a `Service`.

Comes in: requests, through one guard (access.py) that refuses what it does not know. Goes out: answers whole or as
events (sse.py), each naming by hash the weights that wrote it, and errors in OpenAI's shape (errors.py). What is behind
the routes (`routes/`, a file for each family) is known by the protocol `serving.service` alone.
Public: `make_app`, `bind`, `run`, `Access`, `Served`.
"""

from typing import TYPE_CHECKING

from afina.core.lazy import exports

if TYPE_CHECKING:
    from afina.serving.http.access import Access as Access
    from afina.serving.http.access import Served as Served
    from afina.serving.http.app import make_app as make_app
    from afina.serving.http.server import run as run
    from afina.serving.http.sockets import bind as bind

__getattr__, __all__ = exports(
    __name__,
    {
        "Access": "afina.serving.http.access",
        "Served": "afina.serving.http.access",
        "bind": "afina.serving.http.sockets",
        "make_app": "afina.serving.http.app",
        "run": "afina.serving.http.server",
    },
)
