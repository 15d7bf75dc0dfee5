"""How byte-level tokenizers part a text before they merge, by the names that GGUF files have for it
(`tokenizer.ggml.pre`; https://github.com/ggml-org/llama.cpp, src/llama-vocab.cpp): one table for reading and for
writing.
"""

from dataclasses import dataclass
from typing import Any

DIGITS = "each digit"
_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens
GPT_2 = "GPT-2's pattern"  # which the tokenizers library has built in
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = tuple(rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}{first}{_LOWER}{then}" for first, then in (("*", "+"), ("+", "*")))
_PATHS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"


@dataclass(frozen=True)
class PreTokenizer:
    """`steps` are patterns, `DIGITS` or `GPT_2`, one after another. `whole_words`: a word of the vocabulary is taken
    whole, whatever the merges say."""

    name: str
    steps: tuple[str, ...]
    whole_words: bool = False

    def build(self, space_before: bool = False) -> Any:
        """That of the tokenizers library; it may put a space before a text."""
        from tokenizers import Regex, pre_tokenizers

        made: list[Any] = []
        for step in self.steps:
            if step == DIGITS:
                made.append(pre_tokenizers.Digits(individual_digits=True))
            elif step != GPT_2:
                made.append(pre_tokenizers.Split(Regex(step), "isolated"))
        made.append(pre_tokenizers.ByteLevel(add_prefix_space=space_before, use_regex=GPT_2 in self.steps))
        return made[0] if len(made) == 1 else pre_tokenizers.Sequence(made)


_THREE_DIGITS = f"{_CONTRACTIONS}|{_WORDS}|\\p{{N}}{{1,3}}|{_SIGNS}|{_SPACE}"
PRE_TOKENIZERS = {
    each.name: each
    for each in (
        PreTokenizer("gpt-2", (GPT_2,)),
        PreTokenizer("smollm", (DIGITS, GPT_2)),
        PreTokenizer("llama-bpe", (_THREE_DIGITS,), whole_words=True),
        PreTokenizer("dbrx", (_THREE_DIGITS,)),
        PreTokenizer("qwen2", (f"{_CONTRACTIONS}|{_WORDS}|\\p{{N}}|{_SIGNS}|{_SPACE}",)),
        PreTokenizer("tekken", (f"{'|'.join(_CASED)}|\\p{{N}}|{_PATHS}|{_SPACE}",), whole_words=True),
        PreTokenizer(
            "gpt-4o",
            (f"{'|'.join(f'{each}{_CONTRACTIONS}?' for each in _CASED)}|\\p{{N}}{{1,3}}|{_PATHS}|{_SPACE}",),
        ),
    )
}


def byte_level_bpe(meta: dict[str, Any]) -> Any:
    """The tokenizers library's own, of a GGUF file's metadata after `tokenizer.ggml.`; None where it is no byte-level
    BPE of the table."""
    from tokenizers import AddedToken, decoders, models, processors
    from tokenizers import Tokenizer as Backend

    pre = meta.get("pre", "default")
    parts = PRE_TOKENIZERS.get("gpt-2" if pre == "default" else pre)
    if meta.get("model") != "gpt2" or parts is None:
        return None
    vocabulary = {text: i for i, text in enumerate(meta["tokens"])}
    merges = [tuple(pair.split(" ", 1)) for pair in meta.get("merges", [])]
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=parts.whole_words))
    backend.pre_tokenizer = parts.build(bool(meta.get("add_space_prefix", False)))
    backend.decoder = decoders.ByteLevel()
    kinds = meta.get("token_type", [])
    for special, kind in ((True, _CONTROL), (False, _USER_DEFINED)):
        found = [meta["tokens"][i] for i, k in enumerate(kinds) if k == kind]
        backend.add_tokens([AddedToken(text, normalized=False, special=special) for text in found])
    # Where the file does not say it, llama.cpp puts bos before a text for the same tokenizers that take words whole.
    if meta.get("add_bos_token", parts.whole_words) and meta.get("bos_token_id") is not None:
        bos = meta["tokens"][meta["bos_token_id"]]
        begun = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, meta["bos_token_id"])])
        backend.post_processor = begun
    return backend


def pre_tokenizer_of(written: Any, whole_words: bool) -> PreTokenizer | None:
    """The one that a tokenizer.json describes under `pre_tokenizer`; None where it is none of the table."""
    steps = _steps(written)
    return next(
        (each for each in PRE_TOKENIZERS.values() if each.steps == steps and each.whole_words == whole_words), None
    )


def _steps(written: Any) -> tuple[str, ...] | None:
    kind = written.get("type") if isinstance(written, dict) else None
    if kind == "Sequence":
        parts = [_steps(each) for each in written.get("pretokenizers", [])]
        return None if None in parts else tuple(step for part in parts if part for step in part)
    if kind == "ByteLevel" and not written.get("add_prefix_space"):
        return (GPT_2,) if written.get("use_regex", True) else ()
    if kind == "Digits" and written.get("individual_digits"):
        return (DIGITS,)
    if kind == "Split" and (written.get("behavior"), bool(written.get("invert"))) in (
        ("Isolated", False), ("Removed", True),
    ):  # fmt: skip
        pattern = written.get("pattern", {}).get("Regex")
        return None if pattern is None else (pattern,)
    return None
