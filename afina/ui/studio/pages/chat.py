"""Talking to a run beside its base: one box, and an answer of each, written in one batch by a server of their own.

The server is a piece of work (`serve`) that this page alone has the key of; there is one at a time. What was said is
kept in the page, and sent along: each model goes on from its own answers, or has each question alone. Which answer is
better is kept in `preferences.jsonl` of the workspace, from which a model can learn later.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from afina.core.errors import AfinaError, InputError
from afina.core.files import append_text, jsonl_rows, read_json
from afina.core.text import json_text
from afina.serving.http.errors import HttpError, JsonResponse
from afina.ui.studio.guard import JSON
from afina.ui.studio.pages.runs import entries
from afina.ui.studio.relay import Relayed, Server
from afina.ui.studio.view import Call, Page, Route, go, quoted
from afina.ui.studio.words import Refused
from afina.ui.studio.work import SERVING, Work

PREFERENCES = "preferences.jsonl"
_KEY = "chat.key"  # among the page's own records
_FEWEST = 64  # tokens that an answer may have: a base needs more than an adapter that says one word
_EXAMPLES = 3
_ABOUT = "/chat"  # after the run's name: what a server of chats is about, and not one that the user opened for programs
_TURNS = 200  # of one chat
State = Literal["none", "loading", "ready", "failed"]


@dataclass(frozen=True)
class Turn:
    """A question and the answers to it, each with the name of the model that gave it. One that was asked `alone` was
    sent without what was said before."""

    prompt: str
    answers: tuple[tuple[str, str], ...]
    alone: bool = False

    @property
    def differ(self) -> bool:
        return len({text for _, text in self.answers}) > 1


def _messages(turns: Sequence[Turn], model: str, prompt: str) -> list[dict[str, str]]:
    """What a model is sent: the questions that it answered, with its answers, and the next one."""
    said = [(turn.prompt, text) for turn in turns if (text := dict(turn.answers).get(model))]
    found = [
        {"role": role, "content": text} for pair in said for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return [*found, {"role": "user", "content": prompt}]


def _turns(text: Any) -> list[Turn]:
    """What was said before, as the page sends it: each question with pairs of a model and its answer, and whether
    it was asked alone. Raises `Refused`."""
    try:
        found = [
            Turn(prompt, tuple((model, answer) for model, answer in answers), alone is True)
            for prompt, answers, alone in json.loads(text)
        ]
    except (ValueError, TypeError, RecursionError):
        raise Refused("history_unread") from None
    texts = [each for turn in found for each in (turn.prompt, *chain.from_iterable(turn.answers))]
    if len(found) > _TURNS or not all(isinstance(each, str) for each in texts):
        raise Refused("history_unread")
    return found


@dataclass(frozen=True)
class Chat:
    """The chat of a run: its server's work, if any. `other` is the run that a server is open for instead."""

    name: str
    path: Path
    work: Work | None
    state: State
    server: Server | None
    seconds: float
    other: str = ""

    @property
    def facts(self) -> dict[str, Any]:
        """What the adapter records of itself; nothing for those of other programs."""
        file = self.path / "adapter" / "afina.json"
        found = read_json(file) if file.is_file() else {}
        return found if isinstance(found, dict) else {}

    @property
    def system(self) -> list[dict[str, str]]:
        """The message with which it was trained."""
        text = (self.facts.get("data") or {}).get("system")
        return [{"role": "system", "content": text}] if text else []

    @property
    def learned_alone(self) -> bool:
        """Whether it learned from single questions: its rows were no conversations."""
        return str(self.facts.get("kind", "chat")) != "chat"

    @property
    def most(self) -> int:
        """Tokens of an answer."""
        return max(_FEWEST, int(self.facts.get("max_new_tokens", _FEWEST)))

    def prompt(self, row: int) -> str:
        """What was asked in a row of its evaluation."""
        return next(iter(self._prompts(row - 1, row)), "")

    def examples(self) -> list[str]:
        return self._prompts(0, _EXAMPLES)

    def _prompts(self, first: int, end: int) -> list[str]:
        file = self.path / "predictions.jsonl"
        return [str(row["prompt"]) for row in islice(jsonl_rows(file), first, end)] if file.is_file() else []


def _look(call: Call) -> Chat:
    """Raises `Refused` where there is no such run."""
    name = call.path("name")
    path = call.workspace.run(name)
    servers = _servers(call)
    own = next((work for work in servers if _is_for(work, path)), None)
    open_now = next((work for work in servers if not work.ended), None)
    other = open_now.about.removesuffix(_ABOUT) if open_now and open_now is not own else ""
    if own is None or (own.ended and own.state not in ("failed", "died")) or (own.ended and other):
        return Chat(name, path, None, "none", None, 0.0, other)
    seconds = time.time() - own.asked_at
    if own.ended:
        return Chat(name, path, own, "failed", None, seconds)
    port = own.address.rpartition(":")[2]
    server = Server(int(port), call.workspace.key_file(_KEY).read_text().strip()) if port else None
    return Chat(name, path, own, "ready" if server else "loading", server, seconds, other)


def _servers(call: Call) -> list[Work]:
    """The servers of chats, open and ended, the newest first."""
    key = str(call.workspace.own / _KEY)
    return [work for work in call.queue.all() if work.job == SERVING and work.settings.get("key_file") == key]


def _is_for(work: Work, path: Path) -> bool:
    return str(next(iter(work.settings["runs"]), "")) == str(path)


def _start(call: Call) -> Response:
    """Opens the chat of a run, with that of another adapter beside it where one is named, and closes others."""
    name, also = call.path("name"), call.text("also")
    runs = [call.workspace.run(each) for each in ([name, also] if also else [name])]
    key = str(call.workspace.key_file(_KEY))
    settings: dict[str, Any] = {"runs": [str(run) for run in runs], "port": 0, "key_file": key}
    if call.text("alone"):
        settings["merge"] = runs[0].name
    has_one = False
    for work in _servers(call):
        if not work.ended and work.settings == settings:
            has_one = True
        elif not work.ended:
            call.queue.stop(work)
    if not has_one:
        call.queue.add(SERVING, settings, f"{name}{_ABOUT}")
    return go(f"/runs/{quoted(name)}/chat", row=call.text("row"))


def _stop(call: Call) -> Response:
    for work in _servers(call):
        if not work.ended:
            call.queue.stop(work)
    return go(f"/runs/{quoted(call.path('name'))}")


def _state(call: Call) -> Response:
    chat = _look(call)
    return JsonResponse({"state": chat.state, "seconds": round(chat.seconds)}, headers={"cache-control": "no-store"})


async def _show(call: Call) -> Response:
    chat = await run_in_threadpool(_look, call)
    row = call.text("row")
    prompt = await run_in_threadpool(chat.prompt, int(row)) if row.isdecimal() and 0 < len(row) < 8 else ""
    return await _page(call, chat, await _models(call, chat), prompt=prompt)


async def _models(call: Call, chat: Chat) -> list[dict[str, Any]]:
    """What the server has, the base first."""
    if chat.server is None:
        return []
    try:
        (found,) = await chat.server.told(call.request, "/v1/models", [None])
        return list(found["data"])
    except (InputError, KeyError, TypeError):  # it ends just now
        return []


async def _page(call: Call, chat: Chat, models: list[dict[str, Any]], **values: Any) -> Response:
    labels: list[str] = next((each["afina"]["labels"] for each in models if each["afina"].get("labels")), [])
    shown: dict[str, Any] = {
        "prompt": "",
        "turns": [],
        "alone": chat.learned_alone,
        "cut": (),
        "classes": [],
        "kept": None,
    } | values
    shown |= {name: call.text(name, "0") or "0" for name in ("temperature", "seed")}
    history = json_text([[turn.prompt, turn.answers, turn.alone] for turn in shown["turns"]])
    return await run_in_threadpool(
        lambda: call.page(
            "chat.html", step="judge", chat=chat, name=chat.name, models=models, labels=labels, history=history,
            examples=chat.examples(), others=_others(call, chat) if chat.state != "ready" else [], **shown,
        )
    )  # fmt: skip


def _others(call: Call, chat: Chat) -> list[str]:
    """Runs whose adapter can answer beside this one's: of the same base, as far as the lists say."""
    found = entries(call)
    base = next((each.get("base") for each in found if each["name"] == chat.name), None)
    return [each["name"] for each in found if each["name"] != chat.name and base and each.get("base") == base
            and each["method"] == "lora" and each["state"] == "complete"]  # fmt: skip


async def _ask(call: Call) -> Response:
    """The page with all answers, for browsers without script."""
    chat = await run_in_threadpool(_look, call)
    server, prompt = _server(chat), str(call.form.get("prompt", ""))
    models = await _models(call, chat)
    if models and models[0]["afina"].get("labels"):
        (told,) = await server.told(call.request, "/v1/classify", [{"model": models[0]["id"], "input": prompt}])
        found = _checked(told)["data"][0]["probabilities"]
        classes = sorted(found.items(), key=lambda each: -each[1])
        return await _page(call, chat, models, prompt=prompt, classes=classes)
    turns = _turns(call.form.get("history", "[]"))
    temperature, seed = _number(call, float, "temperature"), _number(call, int, "seed")
    names = [model["id"] for model in models]
    alone = call.text("alone") == "yes"
    before = [] if alone else turns
    questions = [_question(chat, name, _messages(before, name, prompt), temperature, seed) for name in names]
    told = await server.told(call.request, "/v1/chat/completions", questions)
    choices = {name: _checked(each)["choices"][0] for name, each in zip(names, told, strict=True)}
    said = Turn(prompt, tuple((name, choice["message"]["content"] or "") for name, choice in choices.items()), alone)
    cut = [name for name, choice in choices.items() if choice["finish_reason"] == "length"]
    return await _page(call, chat, models, turns=[*turns, said], alone=alone, cut=cut)


def _checked(told: Any) -> Any:
    """An answer of the server. Raises `InputError` where it is an error."""
    if "error" in told:
        raise InputError(str(told["error"]["message"]))
    return told


def _server(chat: Chat) -> Server:
    if chat.server is None:
        raise Refused("chat_closed")
    return chat.server


def _number(call: Call, kind: type[Any], name: str) -> Any:
    given = call.form.get(name, 0)
    try:
        return kind(given.strip().replace(",", ".") or 0 if isinstance(given, str) else given)
    except (ValueError, TypeError, OverflowError):
        raise Refused("no_number", name=call.words(f"chat.{name}"), given=str(given)[:20]) from None


def _question(chat: Chat, model: str, said: list[Any], temperature: float, seed: int) -> dict[str, Any]:
    """What a model is asked: all of them the same, after the message with which the run was trained."""
    has_system = any(isinstance(each, dict) and each.get("role") == "system" for each in said)
    messages = said if has_system else [*chat.system, *said]
    return {
        "model": model, "messages": messages, "max_tokens": chat.most, "temperature": temperature, "seed": seed,
    }  # fmt: skip


async def _answer(call: Call) -> Response:
    """One model's answer, as it is written; those of the others are asked for beside it, and share its batch."""
    try:
        chat = await run_in_threadpool(_look, call)
        said, model = call.form.get("messages"), call.form.get("model")
        if not isinstance(said, list) or not isinstance(model, str):
            raise Refused("no_question")
        asked = _question(chat, model, said, _number(call, float, "temperature"), _number(call, int, "seed"))
        exchange = await _server(chat).ask("/v1/chat/completions", asked | {"stream": True})
    except AfinaError as error:
        return HttpError(400, str(error)).response()
    return Relayed(call.request, exchange)


async def _prefer(call: Call) -> Response:
    """Keeps which answer is better, and shows the chat as it was. Raises `Refused` where there is nothing to choose."""
    chat = await run_in_threadpool(_look, call)
    turns = _turns(call.form.get("history", ""))
    number, chosen = (
        int(given) if given.isdecimal() and len(given) < 4 else _TURNS
        for given in (call.text("turn"), call.text("chosen"))
    )
    if number >= len(turns) or chosen >= len(turns[number].answers) or not turns[number].prompt.strip():
        raise Refused("none_chosen")
    before = [] if turns[number].alone else turns[:number]
    lines = "".join(f"{json_text(line)}\n" for line in _preferences(chat, before, turns[number], chosen))
    if not lines:
        raise Refused("same_answers")
    await run_in_threadpool(append_text, call.workspace.root / PREFERENCES, lines, 0o600)
    if call.request.headers.get("content-type", "").startswith(JSON):
        return Response(status_code=204)
    return await _page(call, chat, await _models(call, chat), turns=turns, kept=number)


def _preferences(chat: Chat, before: Sequence[Turn], turn: Turn, number: int) -> Iterator[dict[str, Any]]:
    """A line for each answer that is worse than the chosen one, as conversations of preferences are written: `prompt`
    is all that the chosen model was sent, and `rejected_prompt` the same of the other, whose own answers came before
    it."""
    model, chosen = turn.answers[number]

    def sent(name: str) -> list[dict[str, str]]:
        return [*chat.system, *_messages(before, name, turn.prompt)]

    for other, rejected in turn.answers:
        if other != model and rejected != chosen:
            yield {
                "prompt": sent(model),
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
                "chosen_model": model,
                "rejected_model": other,
                "rejected_prompt": sent(other),
            }


PAGE = Page(
    "chat",
    (
        Route("GET", "/runs/{name:path}/chat/state", _state),
        Route("GET", "/runs/{name:path}/chat", _show),
        Route("POST", "/runs/{name:path}/chat", _ask),
        Route("POST", "/runs/{name:path}/chat/start", _start),
        Route("POST", "/runs/{name:path}/chat/stop", _stop),
        Route("POST", "/runs/{name:path}/chat/answer", _answer),
        Route("POST", "/runs/{name:path}/chat/better", _prefer),
    ),
)
