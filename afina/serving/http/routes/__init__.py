"""The routes of the server, a file for each family of them.

Comes in: a `Call`, whose body is read and has the right form. Goes out: a response, or an error that is one. To add a
route is to add a file that defines `ROUTES`, a `Route` or a tuple of them: access, limits, errors, `/openapi.json` and
metrics follow from it.
Public: `ROUTES`.
"""

from afina.core.registry import Registry
from afina.serving.http.route import Route

ROUTES: Registry[Route] = Registry("afina.serving.http.routes", "ROUTES", "route")
