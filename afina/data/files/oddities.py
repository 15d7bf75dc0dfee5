"""What no language writes: a text that is full of it was read in a wrong encoding."""

import re
import unicodedata
from functools import cache

_PAIR = re.compile(r"(?=(\S[^\x00-\x7f]|[^\x00-\x7f][\x21-\x7e]))")
_BEGUN = re.compile("[^“”„]*“(?![\x00-\x7f])[^\\W\\d_A-ZА-ЯЁЄІЇҐ][^“”„]*")
_SYMBOLS = ("Sc", "Sk", "Sm", "So", "No", "Cn", "Co", "Cs")
_ALPHABETS = {"LATIN", "CYRILLIC", "GREEK", "HEBREW", "ARABIC", "THAI", "ARMENIAN", "GEORGIAN"}


def oddities(text: str) -> int:
    """How many pairs of adjacent characters, one of them at least not ASCII, are odd in any language: letters of two
    alphabets, a capital after a small letter, a symbol beside a letter, punctuation that faces the wrong way. The sign
    for any currency is odd by itself, and so is a quotation that begins with a small letter, not ASCII, and never
    ends."""
    alone = sum(_BEGUN.fullmatch(line) is not None for line in text.split("\n"))
    return sum(_is_odd(pair) for pair in _PAIR.findall(text)) + len(re.findall(r"(?<!\S)’\w|¤", text)) + alone


def _is_odd(pair: str) -> bool:
    (one, kind), (other, other_kind) = _character(pair[0]), _character(pair[1])
    if one and other:
        return one != other or (kind == "Ll" and other_kind == "Lu")
    if one and pair[1] > "\x7f":
        return other_kind in (*_SYMBOLS, "Ps", "Pi")
    if other and pair[0] in "ªº":  # not 20 ºC
        return pair[1] > "\x7f"
    return bool(other) and pair[0] > "\x7f" and kind in (*_SYMBOLS, "Pe", "Pf", "Po") and pair[0] not in "’·°"


@cache
def _character(char: str) -> tuple[str, str]:
    """The alphabet of a letter ('' of anything else), and its Unicode category."""
    kind = unicodedata.category(char)
    alphabet = unicodedata.name(char, "").split(" ")[0] if kind[0] == "L" else ""
    return (alphabet if alphabet in _ALPHABETS else ""), kind
