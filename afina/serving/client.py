"""A server of Afina's, asked from here: many questions at one time, each answer with the weights that wrote it."""

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request

from pydantic import BaseModel, Field, ValidationError

from afina.core.errors import InputError, brief
from afina.core.events import Listener, Progress, ignore
from afina.core.limits import REPLY_BYTES
from afina.measure.remote import Remote, retry_after

KEYS = ("AFINA_API_KEY", "OPENAI_API_KEY")
AT_ONCE = 32  # requests in flight
_TRIES = 8  # of a request that the server has no room for
_TIMEOUT = 600.0  # seconds without a byte


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str


class _Reply(BaseModel):
    """What is read of a chat completion."""

    system_fingerprint: str = ""
    choices: list[_Choice] = Field(min_length=1)


class ServedModel(BaseModel):
    """What is read of a model in the server's list."""

    id: str
    parent: str | None = None


class _Models(BaseModel):
    data: list[ServedModel]


@dataclass(frozen=True)
class Reply:
    """`stopped`: by itself, not at the limit of tokens."""

    text: str
    stopped: bool
    fingerprint: str


class Client(Remote):
    """The server at `url`, which may end in the host or in `/v1`. The key comes from AFINA_API_KEY, or else
    OPENAI_API_KEY; without either none is sent. Raises `SettingsError` for what is no URL, and
    where the key would be sent in the clear."""

    def __init__(self, url: str) -> None:
        super().__init__("--url", url, KEYS, "http://127.0.0.1:8080")
        path = self._parts.path.rstrip("/").removesuffix("/v1")
        self.url = self._parts._replace(path=path, query="", fragment="").geturl()

    def models(self) -> list[ServedModel]:
        """Raises `InputError`."""
        found: _Models = self._read(_Models, self._ask("/v1/models"))
        return found.data

    def chat(
        self, model: str, questions: Sequence[dict[str, Any]], listener: Listener = ignore, stage: str = "answers"
    ) -> list[Reply]:
        """The greedy answer to each of the `questions`, which are what a chat completion takes beside the model. Raises
        `InputError`."""
        replies: dict[int, Reply] = {}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            futures = {pool.submit(self._one, model, each): i for i, each in enumerate(questions)}
            try:
                for future in as_completed(futures):
                    replies[futures[future]] = future.result()
                    listener(Progress(stage, len(replies), len(questions)))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return [replies[i] for i in range(len(questions))]

    def _one(self, model: str, question: dict[str, Any]) -> Reply:
        found = self._read(_Reply, self._ask("/v1/chat/completions", {"model": model, "temperature": 0} | question))
        choice = found.choices[0]
        return Reply((choice.message.content or "").strip(), choice.finish_reason == "stop", found.system_fingerprint)

    def _read(self, kind: type[Any], body: bytes) -> Any:
        try:
            return kind.model_validate_json(body)
        except ValidationError as error:
            raise InputError(f"the server at {self.url} does not answer as Afina's do", "check --url") from error

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        content = None if body is None else json.dumps(body).encode()
        request = Request(self.url + path, content, self._headers)  # noqa: S310 - http(s) only, see Remote
        for attempt in range(_TRIES):
            try:
                with self._opener.open(request, timeout=_TIMEOUT) as response:
                    return bytes(response.read(REPLY_BYTES))
            except HTTPError as error:
                with error:
                    if error.code not in (429, 503) or attempt == _TRIES - 1:
                        raise InputError(f"the server at {self.url}: {_message(error)}", _remedy(error.code)) from error
                    asked = retry_after(error)
                    time.sleep(1.0 if asked is None else min(10.0, asked))
            except (OSError, HTTPException) as error:
                reason = error.reason if isinstance(error, URLError) else error
                raise InputError(
                    f"the server at {self.url} cannot be reached: {reason or type(error).__name__}",
                    "check --url, and that the server is running",
                ) from error
        raise InputError(f"the server at {self.url} is busy", "try again later")


def _message(error: HTTPError) -> str:
    try:
        return str(json.loads(error.read(1 << 16))["error"]["message"])
    except (OSError, HTTPException, ValueError, LookupError, TypeError):
        return brief(error)


def _remedy(code: int) -> str:
    if code in (401, 403):
        return f"set {KEYS[0]} to a key of the server"
    return "`afina serve` names its models at the start; GET /v1/models lists them" if code == 404 else ""
