"""Who may ask: the one middleware through which every request goes.

The server is called by this machine's names alone (Host), by its own pages alone (Origin, Sec-Fetch-Site), and with the
cookie that the address with the token gave. What changes something is a form of a page (with a token against forgery)
or JSON, which no foreign page can send unasked.
"""

import hmac
import re
from hashlib import sha256
from urllib.parse import parse_qsl, quote, urlencode

from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from afina.core.limits import REQUEST_BYTES
from afina.serving.http.access import LOOPBACK, check_names, header_values
from afina.serving.http.errors import HttpError
from afina.ui.studio.words import Words, language_of

FORM, JSON, BYTES = "application/x-www-form-urlencoded", "application/json", "application/octet-stream"
_CHANGING = frozenset({"POST"})
_HEADERS = (
    (b"content-security-policy", b"default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),  # with no-referrer, browsers send the forms of our own pages as from "null"
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Keys:
    """What lets in: the token of the address, the cookie, and what each form brings along. Derived from a `secret`."""

    def __init__(self, secret: bytes, token: str) -> None:
        self.token = token
        self.cookie, self.form = (hmac.new(secret, name, sha256).hexdigest() for name in (b"cookie", b"form"))


class Guard:
    """The middleware."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self.app, self.keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message.get("headers", ())}
                message["headers"] = [*message.get("headers", ()), *(each for each in _HEADERS if each[0] not in own)]
            await send(message)

        refused = self._refused(scope)
        await (refused or self.app)(scope, receive, answer)

    def _refused(self, scope: Scope) -> Response | None:
        headers = header_values(scope)
        try:
            check_names(headers, frozenset(LOOPBACK))
        except HttpError as error:
            return PlainTextResponse(f"{error}\n", error.status)
        if headers.get("sec-fetch-site", ["none"])[0] not in ("same-origin", "none") and not _is_visit(scope, headers):
            return PlainTextResponse("pages of other sites may not call this one\n", 403)
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        tokens = [value for name, value in query if name == "token"] if scope["method"] == "GET" else []
        cookies = "; ".join(headers.get("cookie", [])).split("; ")
        own = f"{_cookie_name(headers)}={self.keys.cookie}"
        if not any(_same(each, own) for each in cookies) and not any(_same(each, self.keys.token) for each in tokens):
            words = Words(language_of(", ".join(headers.get("accept-language", []))))
            return PlainTextResponse(f"{words('layout.knock')}\n", 403)
        if tokens:  # of the server before, perhaps: who has the cookie is in
            return self._let_in(scope["path"], query)
        return _wrong_body(scope, headers) if scope["method"] in _CHANGING else None

    def _let_in(self, path: str, query: list[tuple[str, str]]) -> Response:
        rest = urlencode([each for each in query if each[0] != "token"])
        place = quote(f"/{path.lstrip('/')}")  # two slashes would begin the name of another host
        return _Entered(f"{place}?{rest}" if rest else place, self.keys.cookie)


class _Entered(RedirectResponse):
    """To the same page without the token, with the cookie, whose name holds the port: cookies know of none."""

    def __init__(self, path: str, cookie: str) -> None:
        super().__init__(path, 303, {"cache-control": "no-store"})
        self._cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.set_cookie(
            _cookie_name(header_values(scope)), self._cookie, max_age=30 * 86_400, httponly=True, samesite="strict"
        )
        await super().__call__(scope, receive, send)


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


def _cookie_name(headers: dict[str, list[str]]) -> str:
    port = re.search(r":(\d+)$", headers["host"][0])
    return f"afina-{port[1] if port else 80}"


def _is_visit(scope: Scope, headers: dict[str, list[str]]) -> bool:
    """Somebody follows a link from elsewhere to a page: it is shown where the cookie comes along, which it does not."""
    return scope["method"] == "GET" and headers.get("sec-fetch-mode", [""])[0] == "navigate"


def _wrong_body(scope: Scope, headers: dict[str, list[str]]) -> Response | None:
    kind = headers.get("content-type", [""])[0].partition(";")[0].strip().lower()
    brings_file = scope["path"].startswith("/upload/")
    if kind not in ((BYTES,) if brings_file else (FORM, JSON)):
        return PlainTextResponse(f"a request like this brings {BYTES if brings_file else f'{FORM} or {JSON}'}\n", 415)
    length = headers.get("content-length", ["0"])[0]
    if not brings_file and (not length.isdecimal() or len(length) > 18 or int(length) > REQUEST_BYTES):
        return PlainTextResponse("the body is too large\n", 413)
    return None
