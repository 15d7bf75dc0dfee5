"""From a request to the token ids that the model continues; rendered where training renders (`data.template`)."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from afina.core.errors import counted
from afina.data.conversation import Conversation, Remarks, check_texts
from afina.data.mapping import Example, Turn, Unusable
from afina.data.mapping.messages import tools_of, turns_of
from afina.data.template import prompt_ids, shorten, text_ids
from afina.models.tokenizer import LONG, Message, Tokenizer
from afina.serving.http.asking import Prompt
from afina.serving.http.errors import invalid
from afina.serving.service import ModelFacts, TooLong

T = TypeVar("T")


async def beside(characters: int, work: Callable[[], T]) -> T:
    """What `work` gives, which takes long for so many characters: then it is done beside the event loop."""
    return await asyncio.to_thread(work) if characters > LONG else work()


@dataclass(frozen=True)
class Chat:
    """Messages and tools as templates take them. `continued` is the beginning of the answer, where there is one."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    continued: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def characters(self) -> int:
        return len(self.continued or "") + sum(len(str(each)) for each in (*self.messages, *self.tools))


def chat_of(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] = (), continues: bool = False) -> Chat:
    """OpenAI's messages. Raises `Unusable`, and `HttpError`."""
    said = dict[str, None]()
    turns = turns_of(list(messages), "messages", said.setdefault)
    found = [turn.message for turn in turns]
    continued = None
    if continues:
        last = found.pop()
        if last["role"] != "assistant" or last.get("tool_calls") or not found:
            raise invalid(
                "the message to be continued has to be the assistant's, after others", "continue_final_message"
            )
        continued = last["content"]
    return Chat(tuple(found), tuple(tools_of(list(tools)) or ()), continued, tuple(said))


def chat_prompt(tokenizer: Tokenizer, facts: ModelFacts, chat: Chat, room: int | None) -> Prompt:
    """`room`: the tokens to which it is cut; None: it is not. Raises `Unusable`, and `TooLong`."""
    if room is None and chat.characters > facts.max_model_len * tokenizer.widest:
        _check_fits(tokenizer, facts, chat_text(tokenizer, chat))  # templates leave out some of what they are given
    remarks = Remarks()
    ids = _ids(tokenizer, chat, remarks)
    warnings = [*chat.warnings, *(line.removesuffix(" (1 row)") for line in remarks.lines())]
    if not facts.template:
        warnings.append("the model has no chat template of its own: a plain one is used, which it was not trained on")
    truncated = 0
    if room is not None and len(ids) > room:
        whole = len(ids)
        chat, ids = _cut(tokenizer, chat, ids, room)
        truncated = whole - len(ids)
        warnings.append(
            f"the prompt had {counted(whole, 'token')}; the oldest messages, or the end of the last, were cut"
        )
    return Prompt(ids, warnings, truncated)


def chat_text(tokenizer: Tokenizer, chat: Chat) -> str:
    """What `chat_prompt` encodes. Raises `Unusable`."""
    turns = [Turn(message, False) for message in chat.messages]
    return Conversation(tokenizer, turns, chat.tools, lambda said: None).prompt() + (chat.continued or "")


def _ids(tokenizer: Tokenizer, chat: Chat, remarks: Remarks | None = None) -> list[int]:
    ids = prompt_ids(tokenizer, chat.messages, chat.tools, remarks)
    if chat.continued:
        check_texts(tokenizer, [{"role": "assistant", "content": chat.continued}])
        ids = ids + tokenizer.encode(chat.continued)  # as training encodes an answer after its prompt
    if not ids:
        raise Unusable("the chat template makes nothing of these messages")
    return ids


def _cut(tokenizer: Tokenizer, chat: Chat, ids: list[int], room: int) -> tuple[Chat, list[int]]:
    """Without the oldest messages; where the last question alone is too long, without its end. The system's message
    stays, and no result is left without its call. Raises `TooLong`."""
    messages = list(chat.messages)
    while len(ids) > room:
        last = max((i for i, each in enumerate(messages) if each["role"] == "user"), default=-1)
        oldest = next((i for i, each in enumerate(messages[:last]) if each["role"] != "system"), None)
        if oldest is None:
            break
        end = oldest + 1
        while end < last and messages[end]["role"] not in ("user", "system"):
            end += 1
        del messages[oldest:end]
        chat = replace(chat, messages=tuple(messages))
        ids = _ids(tokenizer, chat)
    margin = 0
    while len(ids) > room and margin < room:
        example = Example(chat.messages, None, (), "", "")
        try:
            cut = shorten(tokenizer, example, len(ids) - room + margin)
        except Unusable as error:
            raise TooLong(f"{error}: beside the answer there is room for {counted(room, 'token')}") from error
        chat, margin = replace(chat, messages=cut.messages), margin + 4
        ids = _ids(tokenizer, chat)
    return chat, ids


def _check_fits(tokenizer: Tokenizer, facts: ModelFacts, text: str) -> None:
    """Raises `TooLong` for a text that cannot fit, however it is encoded, which would take long."""
    if len(text) > facts.max_model_len * tokenizer.widest:
        raise TooLong(
            f"the context of {facts.id!r} has {counted(facts.max_model_len, 'token')}; the prompt has "
            f"{counted(len(text), 'character')}, which are more in any case: shorten it, or say afina.truncate"
        )


def check_tokens(tokenizer: Tokenizer, ids: Sequence[int], param: str) -> None:
    """Raises `HttpError` for what is no token of the model, in the field `param`."""
    most = len(tokenizer.inner)
    if (wrong := next((i for i in ids if not 0 <= i < most), None)) is not None:
        raise invalid(f"{wrong} is no token of the model, which has {most:,}", param)


def text_prompt(tokenizer: Tokenizer, facts: ModelFacts, given: str | list[int], room: int | None) -> Prompt:
    """Plain text, or token ids; an empty text is the beginning of any, the BOS token. Raises `Unusable`, `HttpError`,
    `TooLong`."""
    if isinstance(given, str):
        if room is None:
            _check_fits(tokenizer, facts, given)
        ids = text_ids(tokenizer, given)
        if not ids and tokenizer.inner.bos_token_id is not None:
            ids = [int(tokenizer.inner.bos_token_id)]
    else:
        check_tokens(tokenizer, given, "prompt")
        ids = list(given)
    if not ids:
        raise Unusable("the prompt is empty, and the model's tokenizer has no BOS token with which a text could begin")
    if room is None or len(ids) <= room:
        return Prompt(ids)
    warning = f"the prompt had {counted(len(ids), 'token')}; its beginning was cut"
    return Prompt(ids[len(ids) - room :], [warning], len(ids) - room)
