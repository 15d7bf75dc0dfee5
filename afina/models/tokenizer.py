"""The tokenizer as Afina uses it: a pad token that never ends a turn, the tokens that do, and the chat template.

The file's own metadata and template decide, not a library's guess: what the template puts after the assistant's words
is the end of turn, it is learned in training, and generation stops at it.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

from jinja2.exceptions import TemplateError

from afina.core.errors import BaseModelError, brief, counted, reading, shortened
from afina.core.files import check_size
from afina.core.limits import (
    ADDED_TOKENS,
    JSON_BYTES,
    RENDER_BYTES,
    RENDER_SECONDS,
    TEMPLATE_CHARACTERS,
    TOKENIZER_BYTES,
    TOKENIZER_MEMORY,
    TOKENIZER_SECONDS,
    TOKENIZER_SPEED,
)  # fmt: skip
from afina.core.limits.process import Exceeded, Failed, TooMuch, bounded, in_child
from afina.core.task import CAUSAL, Task
from afina.models.formats.gguf import GGUF
from afina.models.formats.pre_tokenizers import byte_level_bpe
from afina.models.templates import MARK, Abilities, abilities, template_for

Message = dict[str, Any]  # {"role": "system" | "user" | "assistant" | …, "content": str}, and more (data.mapping)

LONG = 1 << 16  # characters, which are encoded in some 20 ms
_encoding = reading("the tokenizer cannot read a text", BaseModelError, "choose another base")


@dataclass(frozen=True)
class Tokenizer:
    """A transformers tokenizer (`inner`) with what training and generation need to know of it.

    `turn_end` is the text that closes an assistant's turn and contains a stop token; `turn_rest` is what the template
    adds after it, which is neither learned nor generated.
    """

    inner: Any
    pad_id: int
    stop_ids: frozenset[int]
    turn_end: str
    turn_rest: str
    task: Task = CAUSAL
    classes: tuple[str, ...] = ()  # the only answers of a classifier, in the order of its outputs

    @_encoding
    def encode(self, text: str) -> list[int]:
        """Token ids of `text`: special tokens in it are recognised, none is added."""
        if len(text) > LONG and current_thread() is not main_thread():
            return self.encode_all([text])[0]  # which, unlike `encode`, lets other threads run
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    @cached_property
    def widest(self) -> int:
        """At most so many characters of a text are one token, but where spaces are left out."""
        composed = 4 if self._backend.normalizer else 1  # characters that Unicode's forms make one
        return composed * max(map(len, self.inner.get_vocab()))

    @_encoding
    def ends(self, text: str) -> list[int]:
        """The character at which each token of `text` ends."""
        return [end for _, end in self._backend.encode(text, add_special_tokens=False).offsets]

    @_encoding
    def encode_all(self, texts: list[str]) -> list[list[int]]:
        """`encode` of each text, on all cores; texts that recur are encoded once."""
        distinct = list(dict.fromkeys(texts))
        encodings = self._backend.encode_batch_fast(distinct, add_special_tokens=False)
        ids = dict(zip(distinct, (encoding.ids for encoding in encodings), strict=True))
        return [ids[text] for text in texts]

    @_encoding
    def encode_input(self, text: str) -> list[int]:
        """Token ids of an encoder's input, with the special tokens around it that the encoder was trained with."""
        return list(self.inner(text, verbose=False).input_ids)

    def decode(self, ids: list[int]) -> str:
        """The text of `ids` without special tokens."""
        return str(self.inner.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def decode_part(self, ids: list[int]) -> str:
        """The same, several times as fast; of a part of an answer its characters may be incomplete."""
        return str(self._backend.decode(ids, skip_special_tokens=True))

    def chat(self, messages: Sequence[Message], answer: bool, tools: Sequence[Message] = ()) -> str:
        """The chat template over `messages` and the schemas of `tools`; with `answer`, up to where the assistant
        begins. Raises `TemplateError`, and `BaseModelError` for a template that takes too much (core/limits.py)."""
        return _rendered(self.inner, messages, answer, tools)

    @cached_property
    def abilities(self) -> Abilities:
        """What the chat template has a place for; without one, texts alone."""
        if not self.task.continues_text:
            return Abilities()
        return abilities(self.chat, str(self.inner.chat_template))

    @cached_property
    def stop_texts(self) -> tuple[str, ...]:
        """The tokens that end a turn, as text."""
        return tuple(self.inner.convert_ids_to_tokens(sorted(self.stop_ids)))

    @cached_property
    def _backend(self) -> Any:
        """The tokenizers library's own object, several times as fast as its wrapper; it neither truncates nor pads."""
        backend = self.inner.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return backend

    @cached_property
    def turn_end_ids(self) -> tuple[int, ...]:
        return tuple(self.encode(self.turn_end))

    @cached_property
    def bos_id(self) -> int | None:
        """The bos token, where the tokenizer itself puts it before a text."""
        ids = self.inner("a").input_ids
        bos = self.inner.bos_token_id
        return int(bos) if bos is not None and ids and ids[0] == bos else None

    @cached_property
    def control_texts(self) -> tuple[str, ...]:
        """The texts that the tokenizer reads as special tokens."""
        return tuple(token.content for token in self.inner.added_tokens_decoder.values() if token.special)

    def template_hash(self) -> str:
        text = self.inner.chat_template if self.task.continues_text else "\n".join(["plain", *self.classes])
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the tokenizer's own serialisation, without the settings that its wrapper changes in use."""
        state = json.loads(self.inner.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def wrap(inner: Any, extra_stops: list[int]) -> Tokenizer:
    """Completes a transformers tokenizer: template, pad, stop tokens (`extra_stops` come from the model's own files).

    Raises `BaseModelError` if the template cannot render one question and one answer.
    """
    if isinstance(inner.chat_template, dict):
        inner.chat_template = inner.chat_template.get("default") or next(iter(inner.chat_template.values()), None)
    if inner.chat_template and not isinstance(inner.chat_template, str):
        raise BaseModelError("the chat template is not a text", "download the base again")
    if not inner.chat_template:
        controls = (token.content for token in inner.added_tokens_decoder.values() if token.special)
        inner.chat_template = template_for(controls, inner.bos_token is not None)
    if inner.eos_token is None:
        raise BaseModelError(
            "the tokenizer has no end-of-sequence token, so no answer could ever end", "choose another base"
        )
    if inner.eos_token_id is None:
        raise BaseModelError(
            f"the tokenizer's end-of-sequence token {shortened(inner.eos_token)} is not in its vocabulary",
            "mend eos_token in the base's files, or choose another base",
        )
    stops = {inner.eos_token_id, *extra_stops}
    try:
        before, rendered = in_child(lambda: _question_and_answer(inner), RENDER_SECONDS, RENDER_BYTES)
    except TooMuch as error:
        raise BaseModelError(f"the chat template takes more than {error} for one conversation", _TOO_MUCH) from error
    except Failed as error:
        raise BaseModelError(str(error), error.remedy) from error
    if MARK not in before or rendered.count(MARK) != 2:
        raise BaseModelError("the chat template drops the question or the answer", "choose another base")
    tail = rendered.rsplit(MARK, 1)[1]
    turn_end, turn_rest = _split_tail(inner, tail, stops)
    stops.update(_specials(inner, turn_end))
    pad = _pick_pad(inner, stops)
    inner.pad_token = inner.convert_ids_to_tokens(pad)
    return Tokenizer(inner, pad, frozenset(int(s) for s in stops), turn_end, turn_rest)


def _question_and_answer(inner: Any) -> tuple[str, str]:
    """A question, and one with its answer. Raises `BaseModelError` for a template that cannot render them."""
    question = [{"role": "user", "content": MARK}]
    try:
        return _rendered(inner, question, True), _rendered(
            inner, [*question, {"role": "assistant", "content": MARK}], False
        )
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        what = f"the chat template cannot render a question and an answer: {brief(error)}"
        raise BaseModelError(
            f"{what} (line {line})" if line else what, "choose another base, or give a template with --template"
        ) from error


_TOO_MUCH = "use a template that only writes the messages out (--template FILE), or another base"


def rendering(seconds: float = RENDER_SECONDS) -> AbstractContextManager[None]:
    """The limits of what a template may take. Around many (of infinite time), they cost nothing for each."""
    return bounded(seconds, RENDER_BYTES)


def _rendered(inner: Any, messages: Sequence[Message], answer: bool, tools: Sequence[Message] = ()) -> str:
    given: dict[str, Any] = {"tokenize": False, "add_generation_prompt": answer, "tools": list(tools) or None}
    if len(inner.chat_template) > TEMPLATE_CHARACTERS:
        raise BaseModelError(f"the chat template has more than {TEMPLATE_CHARACTERS:,} characters", _TOO_MUCH)
    try:
        with rendering():
            text = str(inner.apply_chat_template(list(messages), **given))
    except (Exceeded, MemoryError) as error:
        what = f"{RENDER_BYTES >> 20} MB" if isinstance(error, MemoryError) else f"{RENDER_SECONDS:.0f} s"
        raise BaseModelError(f"the chat template takes more than {what} for one conversation", _TOO_MUCH) from error
    except TemplateError:
        raise
    except Exception as error:  # of an expression in the template
        raise TemplateError(brief(error)) from error
    if len(text) > TEMPLATE_CHARACTERS and len(text) > 4 * len(str((messages, tools))):
        raise BaseModelError(
            f"the chat template makes {counted(len(text), 'character')} of one conversation", _TOO_MUCH
        )
    return text


def with_template(tokenizer: Tokenizer, template: str) -> Tokenizer:
    """The tokenizer with another chat template. Raises `BaseModelError` where it cannot render a question and an
    answer."""
    if not tokenizer.task.continues_text:
        raise BaseModelError("this base has no chat, so no chat template", "leave --template out")
    tokenizer.inner.chat_template = template
    try:
        return wrap(tokenizer.inner, sorted(tokenizer.stop_ids))
    except BaseModelError as error:
        reason = str(error).split("\n")[0].removesuffix(".")
        raise BaseModelError(f"--template: {reason}", "fix the template, or leave --template out") from error


def _specials(inner: Any, text: str) -> list[int]:
    special = set(inner.all_special_ids) | {i for i, t in inner.added_tokens_decoder.items() if t.special}
    return [i for i in inner.encode(text, add_special_tokens=False) if i in special]


def _split_tail(inner: Any, tail: str, stops: set[int]) -> tuple[str, str]:
    """The tail after an answer, split behind its first special token; eos where the template puts none."""
    special = _specials(inner, tail)
    for wanted in (stops, set(special)):
        token = next((i for i in special if i in wanted), None)
        if token is not None:
            text = inner.convert_ids_to_tokens(token)
            at = tail.index(text) + len(text)
            return tail[:at], tail[at:]
    return inner.eos_token, ""


def _pick_pad(inner: Any, stops: set[int]) -> int:
    """A pad that ends no turn. Its embedding is never looked up, so a rare token serves where no special token is
    free."""
    candidates = [inner.pad_token_id, inner.unk_token_id]
    specials = sorted(i for i, token in inner.added_tokens_decoder.items() if token.special)
    candidates += sorted(specials, key=lambda i: "pad" not in inner.convert_ids_to_tokens(i))
    candidates += [i for i in specials if i != inner.bos_token_id]
    candidates += range(inner.vocab_size - 1, -1, -1)
    free = (int(i) for i in candidates if i is not None and i not in stops and i != inner.bos_token_id)
    if (pad := next(free, None)) is None:
        raise BaseModelError("every token of the vocabulary ends an answer", "mend eos_token_id in the base's files")
    return pad


def from_gguf(file: GGUF, path: Path) -> Tokenizer:
    """The tokenizer in a GGUF file's metadata. Raises `BaseModelError`."""
    with reading(f"{path}: its metadata are not those of a tokenizer", BaseModelError, "download it again"):
        inner, stops = _of_gguf(file, path)
    return wrap(inner, stops)


def _of_gguf(file: GGUF, path: Path) -> tuple[Any, list[int]]:
    from transformers import PreTrainedTokenizerFast

    meta = {key.removeprefix("tokenizer.ggml."): value for key, value in file.metadata.items()}
    tokens = meta.get("tokens")
    if not tokens or meta.get("eos_token_id") is None:
        raise BaseModelError(f"{path} contains no tokenizer", "take the file from another source")

    def token(key: str) -> str | None:
        return tokens[meta[key]] if meta.get(key) is not None else None

    if (backend := byte_level_bpe(meta)) is not None:
        inner = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)
    else:
        from transformers import AutoTokenizer

        inner = AutoTokenizer.from_pretrained(
            path.parent, gguf_file=path.name, trust_remote_code=False, local_files_only=True
        )
    inner.eos_token, inner.bos_token = token("eos_token_id"), token("bos_token_id")
    inner.unk_token, inner.pad_token = token("unknown_token_id"), token("padding_token_id")
    inner.chat_template = file.metadata.get("tokenizer.chat_template")
    return inner, [meta[key] for key in ("eot_token_id", "eom_token_id") if meta.get(key) is not None]


def from_folder(path: Path, extra_stops: list[int]) -> Tokenizer:
    """The tokenizer of a folder in transformers' format, for a model that chats. Raises `BaseModelError`."""
    return wrap(_read(path), extra_stops)


def encoder_tokenizer(path: Path, task: Task, classes: Sequence[str]) -> Tokenizer:
    """The tokenizer of an encoder's folder, for a `task` without a chat template; with its `classes` where it needs
    them. Raises `BaseModelError`."""
    inner = _read(path)
    end = inner.eos_token_id if inner.eos_token_id is not None else inner.sep_token_id
    if inner.pad_token_id is None or end is None:
        raise BaseModelError(f"{path}: the tokenizer has no pad or no end token", "choose another base")
    own = tuple(classes) if task.needs_classes else ()
    return Tokenizer(inner, int(inner.pad_token_id), frozenset([int(end)]), "", "", task, own)


def _read(path: Path) -> Any:
    from transformers import AutoTokenizer
    from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

    for file in path.glob("*"):
        if file.suffix in (".json", ".jinja", ".txt", ".model"):
            check_size(file, TOKENIZER_BYTES if file.name == "tokenizer.json" else JSON_BYTES, BaseModelError)
    _try(path / "tokenizer.json")
    with reading(f"{path}: no tokenizer could be read", BaseModelError, "download the base again"):
        inner = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    longest = inner.model_max_length
    if not isinstance(longest, int | float) or not longest >= 1:
        inner.model_max_length = VERY_LARGE_INTEGER  # that library compares with whatever stands in the file
    if not inner.is_fast:
        raise BaseModelError(f"{path}: the tokenizer has no tokenizer.json", "convert it with transformers first")
    return inner


_PAGE = (
    f"It is {'a' * 400} page of 12,345 words!? {'ab' * 99}\n\n\n{' ' * 99}\n{'. ' * 99}{'-' * 99}{'9' * 99}\t"
    + "Água e 水, naïve café; the quick brown fox jumps over the lazy dog's back (3.14). " * 20
)


def _try(file: Path) -> None:
    """A tokenizer's patterns and replacements are programs of their own, which run in Rust: whether they read a page of
    text, and in which time and memory, is found out in a child. Raises `BaseModelError`."""
    from tokenizers import Tokenizer as Backend

    def encode_a_page() -> None:
        try:
            backend = Backend.from_file(str(file))
            backend.no_truncation()
            backend.no_padding()
            added = len(backend.get_added_tokens_decoder())
            backend.decode(backend.encode(_PAGE).ids)
        except MemoryError:
            raise
        except Exception:  # what is refused with a reason is told where it is read
            return
        if added > ADDED_TOKENS:
            raise BaseModelError(f"it adds {added:,} tokens, {ADDED_TOKENS:,} are read")

    if not file.is_file():
        return
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # or a copy of a process that used it says something
    seconds = max(TOKENIZER_SECONDS, file.stat().st_size / TOKENIZER_SPEED)
    try:
        in_child(encode_a_page, seconds, TOKENIZER_MEMORY)
    except TooMuch as error:
        raise BaseModelError(
            f"{file} takes more than {error} for a page of text", "choose another base, or download it again"
        ) from error
    except Failed as error:
        raise BaseModelError(f"{file} cannot read a page of text ({error})", "download the base again") from error
