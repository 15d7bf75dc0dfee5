"""A server in whose API, OpenAI's, Afina asks: its address, the key that it gets, and what lies between."""

import os
import re
from collections.abc import Sequence
from http.client import HTTPMessage
from typing import IO
from urllib.error import HTTPError
from urllib.parse import SplitResult, urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from afina.core.errors import SettingsError
from afina.core.machine import is_loopback


class Remote:
    """The server at `url`, which the option `flag` gave. The API key comes from the first of the environment variables
    `keys` that is set; without one none is sent. Raises `SettingsError`, for what is no URL with an `example` of one.
    """

    def __init__(self, flag: str, url: str, keys: Sequence[str], example: str) -> None:
        self._parts = _parts(flag, url.strip(), example)
        self._key_from = next((name for name in keys if os.environ.get(name, "").strip()), None)
        key = os.environ[self._key_from].strip() if self._key_from else ""
        here = is_loopback(self._parts.hostname or "")
        if key and self._parts.scheme == "http" and not here:
            raise SettingsError(
                f"{flag} {url}: the key in {self._key_from} would be sent to another machine in the clear",
                f"give its https:// address, or unset {self._key_from} if it needs no key",
            )
        if not (key.isascii() and key.isprintable()):
            raise SettingsError(f"the key in {self._key_from} has characters that no key has", "copy it again")
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        direct = [ProxyHandler({})] if here else []  # what is for this machine is not shown to a proxy
        self._opener = build_opener(_NoRedirects, *direct)


class _NoRedirects(HTTPRedirectHandler):
    """A redirect is an error: following it would lose the question and send the key to another server."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


def retry_after(error: HTTPError) -> float | None:
    """The seconds that a server asks to be left alone for, where it says so in a number."""
    asked = error.headers.get("Retry-After", "")
    return float(asked) if asked.isdecimal() else None


def _parts(flag: str, url: str, example: str) -> SplitResult:
    """Of a URL of http or https."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        good = None
    if not good or not url.isascii() or re.search(r"\s", url):
        raise SettingsError(f"{flag} {url!r} is not a URL", f"give one such as {example}")
    return parts
