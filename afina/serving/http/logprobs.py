"""How likely tokens were, in the two shapes of OpenAI's API; of the raw distribution, before temperature."""

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from afina.models.tokenizer import Tokenizer
from afina.serving.service import Likelihood

_LOWEST = -9999.0  # where the model gives a token no chance: JSON has no infinity


@lru_cache(1)
def _bytes_of_letters() -> dict[str, int]:
    """The letter by which byte-level tokenizers write each byte: printable ones by themselves, the others from 256 on
    (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


class TokenTexts:
    """The bytes that tokens stand for: none for a control token, which is never sent as text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._inner = tokenizer.inner
        decoder = json.loads(self._inner.backend_tokenizer.to_str()).get("decoder") or {}
        self._byte_level = "ByteLevel" in json.dumps(decoder)
        self._added = {i: (token.content, token.special) for i, token in self._inner.added_tokens_decoder.items()}
        self._known: dict[int, bytes] = {}

    def content(self, token: int) -> bytes:
        if token not in self._known:
            self._known[token] = self._found(token)
        return self._known[token]

    def name(self, token: int) -> str:
        """For a shape that needs different names for different tokens: a control token's is its own."""
        text, special = self._added.get(token, ("", False))
        if special:
            return str(text)
        content = self.content(token)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

    def _found(self, token: int) -> bytes:
        if token in self._added:
            text, special = self._added[token]
            return b"" if special else text.encode()
        text = self._inner.convert_ids_to_tokens(token) or ""
        if self._byte_level and all(letter in _bytes_of_letters() for letter in text):
            return bytes(_bytes_of_letters()[letter] for letter in text)
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            return bytes([int(text[3:5], 16)])
        return text.replace("▁", " ").encode()


@lru_cache(16)
def texts_of(tokenizer: Tokenizer) -> TokenTexts:
    return TokenTexts(tokenizer)


def _finite(value: float) -> float:
    return value if value > _LOWEST else _LOWEST


def of_chat(tokenizer: Tokenizer, tokens: Sequence[Likelihood]) -> dict[str, Any]:
    texts = texts_of(tokenizer)

    def shape(token: int, value: float) -> dict[str, Any]:
        content = texts.content(token)
        return {"token": texts.name(token), "logprob": _finite(value), "bytes": [*content]}

    return {
        "content": [
            {**shape(each.id, each.logprob or 0.0), "top_logprobs": [shape(*one) for one in each.top]}
            for each in tokens
        ],
        "refusal": None,
    }


def of_text(tokenizer: Tokenizer, tokens: Sequence[Likelihood], offset: int = 0) -> dict[str, Any]:
    """`offset` is the number of characters before the first of the tokens."""
    texts = texts_of(tokenizer)
    content, offsets = b"", list[int]()
    for each in tokens:
        offsets.append(offset + len(content.decode(errors="ignore")))
        content += texts.content(each.id)
    return {
        "tokens": [texts.name(each.id) for each in tokens],
        "token_logprobs": [None if each.logprob is None else _finite(each.logprob) for each in tokens],
        "top_logprobs": [None if each.logprob is None else _named(texts, each.top) for each in tokens],
        "text_offset": offsets,
    }


def _named(texts: TokenTexts, top: Sequence[tuple[int, float]]) -> dict[str, float]:
    """By name; of tokens of one name the likeliest, which comes first."""
    found: dict[str, float] = {}
    for token, value in top:
        found.setdefault(texts.name(token), _finite(value))
    return found
