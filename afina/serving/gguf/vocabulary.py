"""The tokenizer as GGUF files have it, `tokenizer.*`: copied from the base's own file, or made of its tokenizer.json.

Two kinds are known to both: BPE over bytes ("gpt2"), with the name of how it parts texts, and BPE over characters with
bytes for those it lacks, as SentencePiece's ("llama"), whose merges are scores of its words.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afina.core.errors import BaseModelError, counted, shortened
from afina.models.formats.gguf import read_gguf
from afina.models.formats.pre_tokenizers import PRE_TOKENIZERS, pre_tokenizer_of
from afina.models.load import Base
from afina.models.tokenizer import Tokenizer
from afina.serving.gguf.facts import Metadata

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_INT32 = 5  # the kind of the items of token types
_ARRAY = 9
_SPACE = "▁"
_STOPS = ("eos", "eot", "eom")
_ELSE = "export the merged safetensors, for programs that read the tokenizer's own file (vLLM, SGLang, transformers)"


@dataclass(frozen=True)
class Vocabulary:
    """Metadata, and their kinds where they are not the usual ones; `notes` say what llama.cpp does otherwise."""

    metadata: Metadata
    kinds: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def vocabulary(base: Base, rows: int, template: str | None) -> Vocabulary:
    """That of the base, for a model of so many token embeddings, with the chat `template`, by default the base's.

    Raises `BaseModelError` where GGUF cannot hold the tokenizer.
    """
    path = Path(base.facts.path)
    found = _copied(path) if path.suffix == ".gguf" else _made(base.tokenizer, rows)
    metadata = dict(found.metadata)
    metadata["tokenizer.chat_template"] = template or base.tokenizer.inner.chat_template
    known = {metadata.get(f"tokenizer.ggml.{name}_token_id") for name in _STOPS}
    ends = [token for token in base.tokenizer.turn_end_ids if token in base.tokenizer.stop_ids and token not in known]
    if ends and "tokenizer.ggml.eot_token_id" not in metadata:
        metadata["tokenizer.ggml.eot_token_id"] = ends[0]
    return Vocabulary(metadata, found.kinds, found.notes)


def _copied(path: Path) -> Vocabulary:
    file = read_gguf(path)
    metadata = {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")}
    return Vocabulary(metadata, {key: file.kinds[key] for key in metadata})


def _made(tok: Tokenizer, rows: int) -> Vocabulary:
    spec = json.loads(tok.inner.backend_tokenizer.to_str())
    model = spec["model"]
    if model["type"] == "Unigram":
        raise _refused(
            "it parts a text into its likeliest pieces (Unigram). llama.cpp merges by scores there, or has no bytes "
            "for characters that are no words, and would give other tokens than those that were trained on"
        )
    if model["type"] != "BPE" or any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix")):
        raise _refused(f"it is of the kind {model['type']}, not BPE over bytes or SentencePiece's BPE")
    tokens, kinds = _tokens(spec, rows)
    of_bytes = _uses(spec["pre_tokenizer"], "ByteLevel")
    made = _bytes_bpe(spec) if of_bytes else _characters_bpe(spec, tokens, kinds)
    inner = tok.inner
    ids = {
        "bos": inner.bos_token_id,
        "eos": inner.eos_token_id,
        "unknown": inner.unk_token_id,
        "padding": inner.pad_token_id if kinds[tok.pad_id] == _CONTROL else None,
    }
    around = inner("a").input_ids
    metadata = {
        "tokens": tokens,
        "token_type": kinds,
        **made.metadata,
        **{f"{name}_token_id": int(number) for name, number in ids.items() if number is not None},
        "add_bos_token": tok.bos_id is not None,
        "add_eos_token": bool(around) and around[-1] == inner.eos_token_id,
    }
    prefixed = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    notes = (*made.notes, *_stripping(spec))
    return Vocabulary(prefixed, {"tokenizer.ggml.token_type": (_ARRAY, _INT32)}, notes)


def _refused(why: str) -> BaseModelError:
    return BaseModelError(f"a GGUF file cannot hold the base's tokenizer: {why}", _ELSE)


def _tokens(spec: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """The word and the kind of each id, with words of no use where the model has more embeddings than words."""
    model, tokens, kinds = spec["model"], [f"[PAD{i}]" for i in range(rows)], [_UNUSED] * rows
    added = {token["id"]: token for token in spec["added_tokens"]}
    largest = max([*model["vocab"].values(), *added])
    if largest >= rows:
        raise _refused(f"it has {counted(largest + 1, 'token')}, the model {counted(rows, 'embedding')}")
    for text, number in model["vocab"].items():
        is_byte = model.get("byte_fallback") and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        tokens[number], kinds[number] = text, _BYTE if is_byte else _NORMAL
        if text == model.get("unk_token"):
            kinds[number] = _UNKNOWN
    for number, token in added.items():
        tokens[number] = token["content"]
        if kinds[number] != _UNKNOWN:
            kinds[number] = _CONTROL if token["special"] else _USER
    return tokens, kinds


def _stripping(spec: dict[str, Any]) -> list[str]:
    """llama.cpp has no place for how an added token takes the spaces beside it."""
    odd = [token["content"] for token in spec["added_tokens"] if token.get("lstrip") or token.get("rstrip")]
    named = ", ".join(odd[:3])
    return [f"spaces beside {named} are kept by llama.cpp, where the base's tokenizer drops them"] if odd else []


def _uses(part: Any, kind: str) -> bool:
    """Whether a part of a tokenizer.json is of the kind, or holds one."""
    if isinstance(part, dict):
        return part.get("type") == kind or any(_uses(each, kind) for each in part.values())
    return isinstance(part, list) and any(_uses(each, kind) for each in part)


def _bytes_bpe(spec: dict[str, Any]) -> Vocabulary:
    model = spec["model"]
    pre = pre_tokenizer_of(spec["pre_tokenizer"], bool(model.get("ignore_merges")))
    if pre is None:
        known = ", ".join(PRE_TOKENIZERS)
        raise _refused(
            f"it parts texts by {shortened(json.dumps(spec['pre_tokenizer']), 300)}, which is none of {known}"
        )
    normaliser, notes = spec["normalizer"], []
    if normaliser is not None and normaliser != {"type": "NFC"}:
        raise _refused(f"it normalises texts by {shortened(json.dumps(normaliser), 200)}")
    if normaliser is not None:
        notes.append("texts that are not in Unicode's composed form (NFC) are read as they are by llama.cpp")
    return Vocabulary({"model": "gpt2", "pre": pre.name, "merges": _merges(model)}, notes=tuple(notes))


def _merges(model: dict[str, Any]) -> list[str]:
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]


def _characters_bpe(spec: dict[str, Any], tokens: list[str], kinds: list[int]) -> Vocabulary:
    model = spec["model"]
    if not model.get("byte_fallback"):
        raise _refused("it is BPE over characters, without bytes for those that it lacks")
    scores, metadata = _scores(model, tokens, kinds), {"model": "llama", "pre": "default"}
    return Vocabulary({**metadata, "scores": scores, "add_space_prefix": _prefixes(spec)})


def _prefixes(spec: dict[str, Any]) -> bool:
    """Whether a text gets a space before it. Spaces must become ▁, and nothing else be changed."""
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepended = {"type": "Prepend", "prepend": _SPACE}
    normaliser, before = spec["normalizer"], spec["pre_tokenizer"]
    steps = normaliser["normalizers"] if normaliser and normaliser["type"] == "Sequence" else [normaliser]
    steps = [step for step in steps if step is not None]
    if before is not None and before["type"] == "Metaspace" and not steps and not before.get("split", True):
        scheme = before.get("prepend_scheme", "always")
        if before.get("replacement") == _SPACE and scheme in ("always", "first", "never"):
            return bool(scheme != "never")
    # Parting at spaces changes nothing: they are ▁ by then.
    idle = before is None or (before["type"] == "Split" and before.get("pattern") == {"String": " "})
    if idle and steps in ([replaced], [prepended, replaced]):
        return len(steps) == 2
    raise _refused(f"it prepares texts by {shortened(json.dumps([normaliser, before]), 300)}")


def _scores(model: dict[str, Any], tokens: list[str], kinds: list[int]) -> list[float]:
    """llama.cpp merges whatever two neighbours make a word, the word of the highest score first: the words in the order
    of their merges. Every way to make a word of two must be a merge, then, and its merges follow one another."""
    pairs = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    known, last = set(pairs), ""
    order: dict[str, int] = {}
    for left, right in pairs:
        word = left + right
        if word != last and word in order:
            raise _refused(f"the merges that make {word!r} do not follow one another")
        last = word
        order.setdefault(word, len(order))
    words = {text for text, kind in zip(tokens, kinds, strict=True) if kind == _NORMAL}
    for word in words:
        parts = ((word[:i], word[i:]) for i in range(1, len(word)))
        odd = next((each for each in parts if each[0] in words and each[1] in words and each not in known), None)
        if odd:
            raise _refused(f"{odd[0]!r} and {odd[1]!r} make a word, but are not merged")
    return [-float(order[text]) if text in order else 0.0 for text in tokens]
