"""A server in this process: the routes over the real engine and a tiny model, asked without a socket."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from afina.models.load import Base
from afina.serving.engine import Limits
from afina.serving.http import Access, bind, make_app, run
from afina.serving.local import LocalService

USER = [{"role": "user", "content": "hello"}]


@contextmanager
def serving(base: Base, roots: Sequence[Path] = (), limits: Limits | None = None, access: Access | None = None,
            **app: Any) -> Iterator["Client"]:  # fmt: skip
    service = LocalService(base, limits or Limits(), roots)
    service.start()
    try:
        yield Client(make_app(service, access or Access(), **app), base, service)
    finally:
        service.close()


@contextmanager
def listening(client: "Client", **how: Any) -> Iterator[tuple[int, list[str]]]:
    """The port on which it listens meanwhile, and what is said."""
    said: list[str] = []
    thread = threading.Thread(
        target=run,
        args=(client.app, bind("127.0.0.1", 0)),
        kwargs={"listener": lambda event: said.append(event.text), **how},
    )
    thread.start()
    while not said:
        time.sleep(0.005)
        assert thread.is_alive()
    try:
        yield int(said[0].rpartition(":")[2]), said
    finally:
        client.app.state.context.stopping = True
        thread.join(20)
        assert not thread.is_alive()


class Answered:
    """What a request was answered."""

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        start = messages[0]
        self.status: int = start["status"]
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}
        self.parts = [message.get("body", b"") for message in messages[1:]]

    @property
    def text(self) -> str:
        return b"".join(self.parts).decode()

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> dict[str, Any]:
        assert self.json.keys() == {"error"}
        assert self.json["error"].keys() == {"message", "type", "param", "code"}
        return self.json["error"]

    @property
    def events(self) -> list[Any]:
        """The frames of a stream; the last is "[DONE]" where it was sent."""
        lines = [line for line in self.text.split("\n\n") if line]
        return [_event(line) for line in lines if not line.startswith(":")]


def _event(line: str) -> Any:
    assert line.startswith("data: "), line
    return line[6:] if line[6:] == "[DONE]" else json.loads(line[6:])


class Client:
    def __init__(self, app: Any, base: Base, service: LocalService) -> None:
        self.app, self.base, self.service = app, base, service
        self.headers: dict[str, str] = {}

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answered:
        return asyncio.run(self.asked(method, path, body, **headers))

    def get(self, path: str, **headers: str) -> Answered:
        return self.ask("GET", path, **headers)

    def post(self, path: str, body: Any, **headers: str) -> Answered:
        return self.ask("POST", path, body, **headers)

    def chat(self, **body: Any) -> Answered:
        asked = {"model": self.base.facts.name, "messages": USER, "max_tokens": 8, "temperature": 0, **body}
        return self.post("/v1/chat/completions", asked)

    def complete(self, **body: Any) -> Answered:
        return self.post("/v1/completions", {"model": self.base.facts.name, "temperature": 0, **body})

    async def asked(
        self, method: str, path: str, body: Any = None, leave_after: int | None = None,
        left: asyncio.Event | None = None, **headers: str,
    ) -> Answered:  # fmt: skip
        """`leave_after`: the client goes after so many parts of the answer; or when `left` is set."""
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        plain, _, query = path.partition("?")
        given = {"host": "127.0.0.1:8080", **self.headers, **{k.replace("_", "-"): v for k, v in headers.items()}}
        if body is not None:
            given.setdefault("content-type", "application/json")
        scope = {
            "type": "http", "method": method, "path": plain, "raw_path": plain.encode(), "scheme": "http",
            "query_string": query.encode(), "headers": [(k.encode(), v.encode()) for k, v in given.items() if v],
            "http_version": "1.1", "root_path": "", "server": ("127.0.0.1", 8080), "client": ("127.0.0.1", 1),
        }  # fmt: skip
        read, left = False, left or asyncio.Event()
        messages: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            nonlocal read
            if not read:
                read = True
                return {"type": "http.request", "body": content, "more_body": False}
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            messages.append(message)
            if leave_after is not None and len(messages) > leave_after:
                left.set()
                await asyncio.sleep(0)

        await self.app(scope, receive, send)
        return Answered(messages)
