"""`/tokenize`, `/detokenize` and `/apply-template`, as llama.cpp's server has them: what a text is to a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import Field

from afina.data.template import prompt_ids
from afina.models.tokenizer import Tokenizer
from afina.serving.http import logprobs
from afina.serving.http.asking import Text
from afina.serving.http.body import Body, Shape
from afina.serving.http.errors import invalid
from afina.serving.http.forms import Tool
from afina.serving.http.prompts import chat_of, chat_text
from afina.serving.http.route import Call, Route
from afina.serving.http.routes.chat import ChatMessage

_Model = Annotated[str, Field(min_length=1, max_length=500)] | None


class _Named(Body):
    model: _Model = Field(None, description="by default the base")


class TokenizeBody(_Named):
    content: Text
    add_special: bool = Field(False, description="with what the tokenizer puts before a text")
    with_pieces: bool = False


class Tokens(Shape):
    tokens: list[Any]


class DetokenizeBody(_Named):
    tokens: Annotated[list[int], Field(max_length=1 << 20)]


class Content(Shape):
    content: str


class TemplateBody(_Named):
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)]
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None


class Rendered(Shape):
    prompt: str


@contextmanager
def _tokenizer(call: Call[Any]) -> Iterator[Tokenizer]:
    models = call.service.models()
    base = next((facts.id for facts in models if facts.parent is None), None)
    name = call.body.model or base
    if name is None:
        raise invalid("say which model", "model")
    handle = call.open(name)
    try:
        yield handle.tokenizer
    finally:
        handle.close()


async def tokenize(call: Call[TokenizeBody]) -> dict[str, Any]:
    with _tokenizer(call) as tokenizer:
        ids = tokenizer.encode(call.body.content)
        if call.body.add_special and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids = [tokenizer.bos_id, *ids]
        if not call.body.with_pieces:
            return {"tokens": ids}
        texts = logprobs.texts_of(tokenizer)
        return {"tokens": [{"id": token, "piece": texts.name(token)} for token in ids]}


async def detokenize(call: Call[DetokenizeBody]) -> dict[str, Any]:
    with _tokenizer(call) as tokenizer:
        most = len(tokenizer.inner)
        wrong = next((token for token in call.body.tokens if not 0 <= token < most), None)
        if wrong is not None:
            raise invalid(f"{wrong} is no token of the model, which has {most:,}", "tokens")
        return {"content": tokenizer.inner.decode(call.body.tokens, clean_up_tokenization_spaces=False)}


async def apply_template(call: Call[TemplateBody]) -> dict[str, Any]:
    with _tokenizer(call) as tokenizer:
        tools = [tool.model_dump(exclude_none=True) for tool in call.body.tools or ()]
        chat = chat_of([each.model_dump(exclude_none=True) for each in call.body.messages], tools)
        if not tokenizer.task.continues_text:
            return {"prompt": tokenizer.inner.decode(prompt_ids(tokenizer, chat.messages, chat.tools))}
        return {"prompt": chat_text(tokenizer, chat)}


ROUTES = (
    Route("POST", "/tokenize", "The tokens of a text", tokenize, TokenizeBody, Tokens),
    Route("POST", "/detokenize", "The text of tokens", detokenize, DetokenizeBody, Content),
    Route("POST", "/apply-template", "A conversation as the model gets it", apply_template, TemplateBody, Rendered),
)
