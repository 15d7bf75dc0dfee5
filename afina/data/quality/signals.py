"""Signals in a text: its language, damage by a wrong encoding, personal data."""

import re
from collections.abc import Iterator

# The most frequent short words of each language; those that two languages share say nothing and are left out.
_WORDS = {
    "en": (
        "the and is of to that it was for with you are this have not what from your they will can i my we me "
        "as an on in do no so at by be or if but how when there would could please been has had about don"
    ),
    "pt": (
        "não uma você com os mais foi ao ele muito isso minha meu também são está pelo até já nos quando "
        "que de do da em um para se na por no é eu me as esse essa tem"
    ),
    "es": (
        "el los las una por pero más muy está como esto hay usted también son qué y fue tiene así que de "
        "la en un para se no es lo al me te ya si"
    ),
    "fr": (
        "le les est pas vous une dans pour que avec plus je nous mais cette des de la en un tu me te qui "
        "se on au très c'est suis être fait"
    ),
    "de": ("der die das und ist nicht ich ein eine zu den mit sie auf für auch es war wir von im in an wie aber noch"),
    "it": (
        "il che di è per gli sono della non questo anche più lo alla ma ho nel perché come una la in un "
        "si mi ti al da se tu"
    ),
}
_KNOWN = {code: set(words.split()) for code, words in _WORDS.items()}
_TELLING = {
    word: code
    for code, words in _KNOWN.items()
    for word in words
    if sum(word in other for other in _KNOWN.values()) == 1
}
_ENOUGH = 2  # words of a language
_LETTERS = re.compile(r"[^\W\d_]+")


def language(text: str) -> str | None:
    """en, pt, es, fr, de or it by its short words; None where they do not say, or fewer than two do: one word alone is
    wrong in 3 % of short posts, two are in 0.2 %."""
    votes: dict[str, int] = {}
    for word in _LETTERS.findall(text[:2000].lower()):
        if word in _TELLING:
            votes[_TELLING[word]] = votes.get(_TELLING[word], 0) + 1
    best = max(votes, key=lambda code: votes[code], default=None)
    return best if best and votes[best] >= _ENOUGH and votes[best] > sum(votes.values()) / 2 else None


_LATER = "[\u0080-\u00bf‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ€]"  # what the bytes of a character after its first are shown as
# Latin; Greek, Cyrillic, Hebrew and Arabic, at least two together; the same of characters of three bytes
_DAMAGE = re.compile(f"[ÂÃÅÄâ]{_LATER}|(?:[Î-Ñ×-Û]{_LATER}){{2}}|(?:[à-ï]{_LATER}{{2}}){{2}}|\ufffd")


def damaged(text: str) -> bool:
    """Whether it holds what UTF-8 read as another encoding leaves behind (mojibake), or characters that were lost."""
    return bool(_DAMAGE.search(text))


def repaired(text: str) -> str | None:
    """The text as it was before it was read in the wrong encoding; None where that is unknown."""
    try:
        again = b"".join(map(_byte, text)).decode("utf-8")
    except UnicodeError:
        return None
    return again if again != text and not damaged(again) else None


def _byte(character: str) -> bytes:
    """The byte that Windows-1252 shows as this character; the few for which it has no character stay as they are."""
    return character.encode("latin-1") if "\x80" <= character <= "\x9f" else character.encode("cp1252")


# What programs and people write where there is nothing.
_NOTHING = {
    "n/a", "n.a.", "na", "n\\a", "n/d", "n.d.", "n/v", "k.a.", "s/d", "#n/a", "#na", "<na>", "nan", "nat", "null",
    "none", "nil", "undefined", "(null)", "(none)", "(empty)", "(blank)", "[null]", "[none]", "[empty]", "\\n", "-",
    "--", "---", "–", "—", "_", "?", "??", "???", ".", "..", "...", "…", "tbd", "tbc", "todo", "xxx", "#ref!",
    "#value!", "#name?", "#div/0!", "#null!", "#num!", "{}", "[]",
}  # fmt: skip


def says_nothing(text: str) -> bool:
    """Whether it is only what stands for a missing value, such as 'N/A' or 'null'."""
    return text.strip().lower() in _NOTHING


_PERSONAL = {
    "e-mail": re.compile(r"\b[\w.+-]+@[\w-]+\.[\w.-]*\w\b"),
    "CPF": re.compile(r"\b\d{3}\.?\d{3}\.?\d{3}-?\d{2}\b"),
    "card": re.compile(r"\b(?:\d[ -]?){12,18}\d\b"),
    "telephone": re.compile(
        r"(?<![\w.])(?:\+\d{1,3}[ -]?)?\(?\d{2,3}\)?[ -]?\d{4,5}[ -]\d{4}(?!\w)|(?<!\w)\+\d[\d -]{8,14}\d(?!\w)"
    ),
}


def personal(text: str) -> Iterator[tuple[str, int, int]]:
    """(kind, begin, end) of what is probably personal: numbers of cards and CPF only where their check digits are
    right."""
    taken: list[tuple[int, int]] = []
    for kind, pattern in _PERSONAL.items():
        for match in pattern.finditer(text):
            digits = [int(c) for c in match[0] if c.isdigit()]
            if (kind == "CPF" and not _cpf(digits)) or (kind == "card" and not _luhn(digits)):
                continue
            if any(match.start() < end and begin < match.end() for begin, end in taken):
                continue
            taken.append(match.span())
            yield kind, *match.span()


def masked(text: str) -> str:
    """The text with each replaced by a word in brackets: [E-MAIL], [CPF], [CARD], [TELEPHONE]."""
    for kind, begin, end in sorted(personal(text), key=lambda found: -found[1]):
        text = f"{text[:begin]}[{kind.upper()}]{text[end:]}"
    return text


def _cpf(digits: list[int]) -> bool:
    """The check digits of Brazil's taxpayer number: sums weighted by position, modulo 11."""
    if len(set(digits)) == 1:
        return False
    for n in (9, 10):
        check = sum(digit * (n + 1 - i) for i, digit in enumerate(digits[:n])) * 10 % 11 % 10
        if check != digits[n]:
            return False
    return True


def _luhn(digits: list[int]) -> bool:
    """The check digit of card numbers (ISO/IEC 7812-1)."""
    doubled = (digit * 2 - 9 if digit > 4 else digit * 2 for digit in digits[-2::-2])
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
