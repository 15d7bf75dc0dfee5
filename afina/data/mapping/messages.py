"""The messages of a file, in the forms that people write them, as roles and texts."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from afina.data.layouts import ASKED, PAIR_ANSWERED, messages_in, parsed, transcript
from afina.data.mapping.columns import text_of
from afina.data.mapping.example import Turn, Unusable
from afina.models.templates import THOUGHT_KEYS
from afina.models.tokenizer import Message

ROLES = ("system", "user", "assistant", "tool")
# ShareGPT's names of the speakers, and others that people write.
_SPEAKERS = {
    "human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "model": "assistant", "ai": "assistant", "developer": "system", "function_call": "assistant",
    "tool_call": "assistant", "observation": "tool", "function_response": "tool", "tool_response": "tool",
    "function": "tool", "ipython": "tool",
}  # fmt: skip
_CALLING = {"function_call", "tool_call"}  # speakers whose text is a call
_SPEAKER, _TEXT = ("role", "from", "speaker"), ("content", "value", "text", "parts")
_LEARNED = ("weight", "loss", "train", "learn", "trainable", "training", "train_on_turn")
_NO, _YES = {"false", "no", "off"}, {"true", "yes", "on"}
_KEYS = {*_SPEAKER, *_TEXT, *THOUGHT_KEYS, *_LEARNED, "refusal", "tool_calls", "function_call", "tool_call_id", "name"}
_TEXT_PARTS = {"text", "input_text", "output_text"}
NO_TEXT = "cannot be read, for only text can: leave the row out, or put a description in its place"
_MEDIA = {"image": "an image", "audio": "sound", "video": "a video", "file": "a file", "document": "a file"}

Say = Callable[[str], None]


def turns_of(value: Any, column: str, say: Say) -> list[Turn]:
    """The turns in `value`: a list (or its JSON) of messages in OpenAI's form (role, content, tool_calls,
    function_call), Anthropic's and Gemini's (parts) or ShareGPT's (from, value), of pairs of a question and its answer,
    or a dialogue in one text. `say` hears of what is not used. Raises `Unusable`, naming the column and the message."""
    held = parsed(value)
    listed = messages_in(held)
    for name, more in held.items() if listed is not held else ():
        if name != "messages" and more not in (None, "", [], {}):
            say(f"the key {name!r} beside the messages in {column!r} is not used")
    listed = transcript(listed) or listed
    if not isinstance(listed, list) or not listed:
        raise Unusable(f"{column!r} is not a list of messages")
    return [turn for number, each in enumerate(listed, 1) for turn in _turns(each, number, say)]


def _turns(each: Any, number: int, say: Say) -> Iterator[Turn]:
    pair = _pair(each)
    for message in _with_results(each) if pair is None else pair:
        yield _turn(message, number, say)


def _with_results(message: Any) -> list[Any]:
    """The message, after what tools returned to it in parts of its own (Anthropic's form, and Gemini's)."""
    key = next((name for name in ("content", "parts") if isinstance(message, dict) and message.get(name)), None)
    if key is None or not isinstance(message[key], list):
        return [message]
    results, rest = list[Any](), list[Any]()
    for part in message[key]:
        found = part if isinstance(part, dict) else {}
        if found.get("type") == "tool_result":
            returned = found.get("content") or ""
            results.append({"role": "tool", "content": returned, "tool_call_id": found.get("tool_use_id")})
        elif isinstance(returned := found.get("functionResponse"), dict):
            results.append({"role": "tool", "content": returned.get("response") or "", "name": returned.get("name")})
        else:
            rest.append(part)
    return [*results, {**message, key: rest}] if rest else results


def _pair(each: Any) -> list[dict[str, Any]] | None:
    """A question and its answer in one item, as messages."""
    if isinstance(each, list | tuple) and len(each) == 2 and all(isinstance(text, str) for text in each):
        return [{"role": "user", "content": each[0]}, {"role": "assistant", "content": each[1]}]
    if not isinstance(each, dict) or any(name in each for name in _SPEAKER):
        return None
    asked = next((name for name in ("human", *ASKED) if isinstance(each.get(name), str)), None)
    answered = next((name for name in PAIR_ANSWERED if isinstance(each.get(name), str)), None)
    if asked is None or answered is None:
        return None
    system = [{"role": "system", "content": each["system"]}] if each.get("system") else []
    rest = {name: value for name, value in each.items() if name not in (asked, answered, "system")}
    return [*system, {"role": "user", "content": each[asked]}, {"role": "assistant", "content": each[answered], **rest}]


def _turn(turn: Any, number: int, say: Say) -> Turn:
    if not isinstance(turn, dict):
        raise Unusable(f"message {number} is neither an object nor a question with its answer")
    given = {name: value for name, value in turn.items() if value is not None}
    said = _first(given, _SPEAKER)
    speaker = said.strip().lower() if isinstance(said, str) else ""
    role = _SPEAKERS.get(speaker, speaker)
    if role not in ROLES:
        what = f"the role {said!r}" if isinstance(said, str) else "no role"
        raise Unusable(
            f"message {number} has {what}, expected one of {', '.join(sorted(ROLES))} (or another's name for it, "
            "such as human, gpt or model): rename it, or leave the message out"
        )
    message: Message = {"role": role, "content": ""}
    content = _first(given, _TEXT)
    calls = parsed(given.get("tool_calls")) or [*filter(None, [parsed(given.get("function_call"))])]
    if speaker in _CALLING and (called := _calls(content)):
        calls, content = called, ""
    if isinstance(content, list):
        content, thought, used = _parts(content, number)
        calls = [*calls, *used] if isinstance(calls, list) else used
        given |= {"reasoning_content": thought} if thought else {}
    elif role == "tool" and content is not None:
        content = text_of(content)
    if role == "assistant" and not content and isinstance(given.get("refusal"), str):
        content = given["refusal"]
    if isinstance(calls, list) and calls and role == "assistant":
        message["tool_calls"] = [_call(call, number) for call in calls]
        content = content or ""
    if role == "assistant" and (reason := _first(given, THOUGHT_KEYS)):
        message["reasoning_content"] = text_of(reason)
        content = content or ""
    if not isinstance(content, str):
        raise Unusable(f"message {number} has no text as content")
    message["content"] = content
    if role == "tool":
        message |= {name: str(given[name]) for name in ("tool_call_id", "name") if given.get(name)}
    _name_unused(given, message, say)
    return Turn(message, _learned(given, role, number, say))


def _calls(text: Any) -> list[Any]:
    """The calls that a text spells as JSON; none where it spells something else."""
    called = parsed(text)
    listed = called if isinstance(called, list) else [called]
    return listed if all(isinstance(call, dict) and "name" in call.get("function", call) for call in listed) else []


def _first(turn: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((turn[name] for name in names if turn.get(name) is not None), None)


def _parts(parts: list[Any], number: int) -> tuple[str, str, list[Any]]:
    """The texts of a message in parts, a line each, its thought, and what it calls. Raises `Unusable` for what is no
    text."""
    texts: list[str] = []
    calls: list[Any] = []
    thoughts: list[str] = []
    for part in parts:
        given = {"type": "text", "text": part} if isinstance(part, str) else part
        if not isinstance(given, dict):
            raise Unusable(f"message {number} has no text as content")
        kind = str(given.get("type") or "text")
        if kind in _TEXT_PARTS and isinstance(given.get("text"), str):
            texts.append(given["text"])
        elif kind == "thinking" and isinstance(given.get("thinking"), str):
            thoughts.append(given["thinking"])
        elif kind == "refusal" and isinstance(given.get("refusal"), str):
            texts.append(given["refusal"])
        elif kind == "tool_use":
            function = {"name": given.get("name"), "arguments": given.get("input")}
            calls.append({"id": given.get("id"), "function": function})
        elif isinstance(called := given.get("functionCall"), dict):
            calls.append({"name": called.get("name"), "arguments": called.get("args")})
        else:
            found = next((words for name, words in _MEDIA.items() if name in kind), f"a part of type {kind!r}")
            raise Unusable(f"message {number} holds {found}, which {NO_TEXT}")
    return "\n".join(texts), "\n".join(thoughts), calls


def system_text(value: Any) -> str:
    """A system message in a column of its own: a text, or a message (Gemini's) in parts."""
    found = parsed(value)
    parts = found.get("parts") if isinstance(found, dict) else None
    return _parts(parts, 0)[0] if isinstance(parts, list) else text_of(value)


def _call(call: Any, number: int) -> dict[str, Any]:
    """A call in the form that chat templates expect, its arguments as an object wherever they are one."""
    called = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(called, dict) or not isinstance(called.get("name"), str):
        raise Unusable(f"message {number} has a call that names no function")
    arguments = called.get("arguments", called.get("parameters"))
    kept = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    function = {"name": called["name"], "arguments": {} if arguments is None else parsed(arguments)}
    return {**kept, "type": "function", "function": function}


def _name_unused(given: dict[str, Any], message: Message, say: Say) -> None:
    """Names the keys that hold something and are not read."""
    for name, value in given.items():
        assistants = name in THOUGHT_KEYS or name in ("tool_calls", "function_call")
        strange = name not in _KEYS or (assistants and message["role"] != "assistant")
        misplaced = name in ("tool_call_id", "name") and message["role"] != "tool"
        if (strange or misplaced) and value not in ("", [], {}):
            say(f"the key {name!r} of messages of the {message['role']} is not used")


def _learned(given: dict[str, Any], role: str, number: int, say: Say) -> bool:
    """Whether the message may be learned: an assistant's, unless it says otherwise."""
    learned = role == "assistant"
    for name in _LEARNED:
        if name not in given:
            continue
        weight = _weight(given[name], name, number)
        if role != "assistant":
            if weight:
                say(f"{name!r} of messages of the {role} is not used: only the assistant's are learned")
            continue
        if weight not in (0, 1):
            what = "as 1, wholly" if weight > 0 else "as 0, not at all"
            say(f"a {name} is 0 or 1 (here it is {weight:g}): such messages are learned {what}")
        if weight <= 0:
            say(f"messages of the assistant with {name} {given[name]!r} are read but not learned")
            learned = False
    return learned


def _weight(value: Any, name: str, number: int) -> float:
    if isinstance(value, str):
        value = value.strip().lower()
        value = 0 if value in _NO else 1 if value in _YES else value
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if math.isnan(weight):
        raise Unusable(f"message {number} has the {name} {value!r}, which is neither a number nor true or false")
    return weight


def tools_of(value: Any) -> tuple[dict[str, Any], ...] | None:
    """The schemas of a column of tools (or its JSON) as chat templates expect them; None where it holds no list of
    them."""
    listed = parsed(value)
    listed = [listed] if isinstance(listed, dict) else listed
    if not isinstance(listed, list) or not all(isinstance(tool, dict) and tool for tool in listed):
        return None
    return tuple(
        _pruned(tool if "function" in tool or "name" not in tool else {"type": "function", "function": tool})
        for tool in listed
    )


def _pruned(value: Any) -> Any:
    """Without the nulls of a schema: they say nothing, and a table gives every row the keys of all."""
    if isinstance(value, dict):
        return {key: _pruned(each) for key, each in value.items() if each is not None or key in ("default", "const")}
    return [_pruned(each) for each in value] if isinstance(value, list) else value
