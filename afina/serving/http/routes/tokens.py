"""`/tokenize`, `/detokenize` and `/apply-template`, as llama.cpp's server has them: what a text is to a model."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Annotated, Any

from pydantic import Field

from afina.data.template import prompt_ids, with_bos
from afina.models.tokenizer import Tokenizer
from afina.serving.http import logprobs
from afina.serving.http.asking import Text
from afina.serving.http.body import Body, Shape
from afina.serving.http.errors import invalid
from afina.serving.http.forms import Tool
from afina.serving.http.prompts import beside, chat_of, chat_text, check_tokens
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
    with closing(call.open(name)) as handle:
        yield handle.tokenizer


async def tokenize(call: Call[TokenizeBody]) -> dict[str, Any]:
    asked = call.body
    with _tokenizer(call) as tokenizer:
        ids = await beside(len(asked.content), lambda: tokenizer.encode(asked.content))
        if asked.add_special:
            ids = with_bos(tokenizer, ids)
        if not asked.with_pieces:
            return {"tokens": ids}
        texts = logprobs.texts_of(tokenizer)
        return {"tokens": [{"id": token, "piece": texts.name(token)} for token in ids]}


async def detokenize(call: Call[DetokenizeBody]) -> dict[str, Any]:
    ids = call.body.tokens
    with _tokenizer(call) as tokenizer:
        check_tokens(tokenizer, ids, "tokens")
        content = await beside(len(ids), lambda: tokenizer.inner.decode(ids, clean_up_tokenization_spaces=False))
        return {"content": content}


async def apply_template(call: Call[TemplateBody]) -> dict[str, Any]:
    with _tokenizer(call) as tokenizer:
        tools = [tool.model_dump(exclude_none=True) for tool in call.body.tools or ()]
        chat = chat_of([each.model_dump(exclude_none=True) for each in call.body.messages], tools)

        def prompt() -> str:
            if tokenizer.task.continues_text:
                return chat_text(tokenizer, chat)
            return str(tokenizer.inner.decode(prompt_ids(tokenizer, chat.messages, chat.tools)))

        return {"prompt": await beside(chat.characters, prompt)}


ROUTES = (
    Route("POST", "/tokenize", "The tokens of a text", tokenize, TokenizeBody, Tokens),
    Route("POST", "/detokenize", "The text of tokens", detokenize, DetokenizeBody, Content),
    Route("POST", "/apply-template", "A conversation as the model gets it", apply_template, TemplateBody, Rendered),
)
