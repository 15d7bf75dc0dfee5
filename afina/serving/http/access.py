"""Who may ask: the one middleware through which every request goes. What it does not let through is refused.

Every path but those in `OPEN` needs a key where there are keys; the admin's routes need an admin's key, and are closed
where there is none (the guard says who asks and the route refuses, so that a path is read once). The names by which
the server may be called (Host) and the pages that may call it (Origin) are checked, so that no page in a browser
reaches a server on its own machine (DNS rebinding, CSRF).
"""

import hmac
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from afina.core.errors import SettingsError
from afina.core.files import read_text
from afina.core.machine import is_loopback
from afina.serving.http.errors import HttpError

OPEN = frozenset({"/health"})
ANSWERED = "afina.served"  # under which a request's `Served` stands in its scope
REFUSED = "afina.refused"  # and under this why it may not do what an admin may; None: it may
Level = Literal["none", "user", "admin"]

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_KEY = re.compile(r"[\x21-\x7e]{8,512}")
_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_KEYS_BYTES = 1 << 20


@dataclass
class Served:
    """A request and what became of it, for the console and the metrics. `model` is empty where none was found."""

    id: str
    method: str
    route: str
    model: str = ""
    status: int = 499
    prompt_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        """On one line."""
        tokens = f" {self.prompt_tokens}+{self.generated_tokens} tokens" if self.prompt_tokens else ""
        model = f" {self.model}" if self.model else ""
        return f"{self.status} {self.method} {self.route}{model}{tokens} {self.seconds:.2f} s {self.id}"


@dataclass(frozen=True)
class Access:
    """`keys` and `admin_keys` as SHA-256, so that all are compared in the same time; `hosts` without ports, None: the
    server may be called by any name; `origins` of other sites whose pages may call it."""

    keys: tuple[bytes, ...] = ()
    admin_keys: tuple[bytes, ...] = ()
    hosts: frozenset[str] | None = frozenset(LOOPBACK)
    origins: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls, host: str = "127.0.0.1", key_file: Path | None = None, admin_key_file: Path | None = None,
        allowed_hosts: Iterable[str] = (), origins: Iterable[str] = (),
    ) -> "Access":  # fmt: skip
        """Raises `SettingsError` for a key file that holds none, and for a host that others reach without a key."""
        keys, admin = (read_keys(file) if file else () for file in (key_file, admin_key_file))
        if not is_loopback(host) and not keys:
            raise SettingsError(
                f"--host {host} lets other machines in, and there is no key",
                "give --key-file FILE with a key in it (`openssl rand -hex 24 > FILE`), or leave --host at 127.0.0.1",
            )
        names = frozenset(name.lower() for name in allowed_hosts)
        hosts = names | {*LOOPBACK} if is_loopback(host) or names else None
        return cls(keys, admin, hosts, frozenset(origin.rstrip("/").lower() for origin in origins))

    def level(self, authorization: str) -> Level:
        """What the `Authorization` of a request allows."""
        kind, _, given = authorization.partition(" ")
        hashed = sha256(given.strip().encode("utf-8", "surrogateescape")).digest()
        known = kind.lower() == "bearer"
        is_admin = _among(hashed, self.admin_keys) and known
        is_user = _among(hashed, self.keys) and known
        if is_admin:
            return "admin"
        return "user" if is_user or not self.keys else "none"


def read_keys(file: Path) -> tuple[bytes, ...]:
    """The SHA-256 of each key in a file: one a line, lines that begin with # are not read. Raises `SettingsError`."""
    try:
        lines = [line.strip() for line in read_text(file, _KEYS_BYTES, SettingsError).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise SettingsError(f"cannot read the keys in {file}: {reason}", "give a file with a key a line") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys or not all(_KEY.fullmatch(key) for key in keys):
        what = "holds a key that is none" if keys else "holds no key"
        raise SettingsError(f"{file} {what}", "write keys of 8 to 512 ASCII letters into it, one a line, no spaces")
    return tuple(sha256(key.encode()).digest() for key in keys)


def _among(hashed: bytes, known: tuple[bytes, ...]) -> bool:
    """Without leaving off at the first that is equal."""
    return sum([hmac.compare_digest(hashed, each) for each in known]) > 0


class Guard:
    """The middleware. `on_served` hears of each request when it is over."""

    def __init__(self, app: ASGIApp, access: Access, on_served: Callable[[Served], None]) -> None:
        self.app, self.access, self.on_served = app, access, on_served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # there is no WebSocket here
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = header_values(scope)
        given = headers.get("x-request-id", [""])[0]
        served = Served(given if _ID.fullmatch(given) else f"req_{secrets.token_hex(12)}", scope["method"], "unknown")
        scope[ANSWERED] = served
        begun = perf_counter()

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                served.status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", served.id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        try:
            scope[REFUSED] = self._check(scope["path"], headers)
        except HttpError as error:
            await error.response()(scope, receive, answer)
        else:
            await self.app(scope, receive, answer)
        finally:
            served.seconds = perf_counter() - begun
            self.on_served(served)

    def _check(self, path: str, headers: dict[str, list[str]]) -> HttpError | None:
        """What an admin's route answers; raises what all do."""
        check_names(headers, self.access.hosts, self.access.origins)
        authorization = headers.get("authorization", [""])
        level = self.access.level(authorization[0]) if len(authorization) == 1 else "none"
        if level == "none" and path not in OPEN:
            raise HttpError(
                401, "a key is needed: send it as `Authorization: Bearer KEY`", "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        remedy = (
            "send one as `Authorization: Bearer KEY`"
            if self.access.admin_keys
            else "start the server with --admin-key-file FILE, and send a key of it as `Authorization: Bearer KEY`"
        )
        return None if level == "admin" else HttpError(403, f"this needs an admin's key: {remedy}", "admin_key_needed")


def check_names(
    headers: dict[str, list[str]], hosts: frozenset[str] | None, origins: frozenset[str] = frozenset()
) -> None:
    """By which name the server is called, and by whose pages (DNS rebinding, CSRF). Raises `HttpError`."""
    called = headers.get("host", [])
    if len(called) != 1:
        raise HttpError(400, "a request has one Host")
    host = called[0].lower()
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    if hosts is not None and name not in hosts:
        raise HttpError(403, "the server is not called by this name (Host); --allowed-hosts names others")
    for origin in headers.get("origin", []):
        page = origin.lower()
        if page not in origins and page.partition("://")[2] != host:
            raise HttpError(403, "pages of this site (Origin) may not call the server")


def header_values(scope: Scope) -> dict[str, list[str]]:
    """All values of each header, by its name in small letters."""
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return found
