"""What the values of a column are like, read from a sample of rows."""

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from afina.data.answers import is_structured
from afina.data.files.folders import part_word
from afina.data.layouts import LANGUAGES
from afina.data.mapping.columns import text_of
from afina.data.mapping.example import Unusable
from afina.data.quality.signals import language
from afina.data.roles.names import meaning

Nature = Literal[
    "empty", "constant", "conversation", "number", "date", "address", "identifier", "split", "label", "list",
    "structured", "text", "unnameable",
]  # fmt: skip
_MOST_LABELS, _LONGEST_LABEL, _WORDS_OF_LABEL = 200, 60, 5
_WORDS_OF_ITEM = 3  # of a list: more are sentences
_MOST = 0.9  # of the values: an exception or two changes nothing
_MARKS = 0.3  # of code to a word
_MOST_NUMBERS = 11  # different whole numbers that may still be labels: ten stars, and none
_JUDGEMENTS = {"accept", "reject", "ignore"}
_ID = re.compile(r'"(id|uuid|\w+(_id|Id|_by))":')  # a key in JSON
_NUMBER = re.compile(r"[-+]?(\d{1,3}([.,  ]\d{3})+|\d+)([.,]\d+)?(e[-+]?\d+)?\s?[%€$£]?|nan|[-+]?inf", re.IGNORECASE)
_MONTH = (
    r"(jan|feb|fev|mar|mär|apr|abr|avr|ma[iyg]|jun|jui|giu|jul|lug|aug|ago|aoû|sep|set|oct|out|okt|ott|nov|de[czs])"
)
_DATE = re.compile(
    rf"(?=.*\d)(\w{{3,9}},? )?(\d{{1,4}}([-/.]\d{{1,2}}){{1,2}}([-/.]\d{{1,4}})?"
    rf"|\d{{1,2}}\.? (de )?{_MONTH}\w*\.?,? (de )?\d{{4}}"
    rf"|{_MONTH}\w*\.? \d{{1,2}}(,? \d{{4}})?|(19|20)\d\d)?[ T,]*(\d{{1,2}}:\d\d(:\d\d(\.\d+)?)?)?"
    r" ?(Z|[ap]\.?m\.?|[A-Z]{3,4}|[+-]\d\d:?\d\d)?( \d{4})?",
    re.IGNORECASE,
)
_ADDRESS = re.compile(
    r"(https?|ftp|s3|gs)://\S+|www\.\S+|[\w.+-]+@[\w-]+\.[\w.-]+|\S+\.(wav|mp3|jpe?g|png|pdf|txt|json|html?)"
)
_QUERY = re.compile(r"\s*(select|insert|update|delete|with|create|match|prefix|ask|describe)\b.*[\s(*]", re.I | re.S)
_CODE = re.compile(r"[{}()\[\]<>=|$\\*/&^~`_]|(?<=\s)-+\w|\b(def|return|import|function|var|const|echo|sudo)\b")
_ASKS = re.compile(
    r"[?？؟]\W*$|^(who|whom|whose|what|where|when|why|how|which|quem|onde|qual|quais|quantos|quando|quién|dónde|cuál"
    r"|cuándo|cómo|qui|où|quel|quelle|pourquoi|comment|wer|wo|wann|warum|wie|welche[rs]?|chi|dove|quale|perché)\b[^.!\n]+$"
    r"|(か|吗|呢)。?$",
    re.IGNORECASE,
)
_WIDE = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")  # written without spaces
_TOKEN = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]+|[^\\W_]+")
_SCRIPTS = {
    "Japanese": "\u3040-\u30ff", "Korean": "\uac00-\ud7af", "Chinese": "\u4e00-\u9fff", "Arabic": "\u0600-\u06ff",
    "Hindi": "\u0900-\u097f", "Greek": "\u0370-\u03ff", "Hebrew": "\u0590-\u05ff", "Thai": "\u0e00-\u0e7f",
    "Ukrainian": "іїєґ", "Russian": "\u0400-\u04ff",
}  # fmt: skip


def stems(text: str) -> list[str]:
    """Its words in lower case, cut to five letters so that their forms agree; where nothing stands between words, pairs
    of characters."""
    found: list[str] = []
    for token in _TOKEN.findall(text.lower()):
        if _WIDE.match(token) and len(token) > 2:
            found.extend(token[i : i + 2] for i in range(len(token) - 1))
        else:
            found.append(token[:5])
    return found


@dataclass(frozen=True, eq=False)
class Column:
    """`name` is as a template writes it (`text`, `data[question]`), `values` are those of the sample's rows, None where
    there is none. Of a list of answers that mean the same it is the first; `among` is then the list's name."""

    name: str
    values: tuple[Any, ...]
    among: str | None = None

    @cached_property
    def meaning(self) -> str | None:
        """What its name says (names.py)."""
        return meaning((self.among or self.name).rstrip("]").rpartition("[")[2])

    @property
    def is_nameable(self) -> bool:
        """Whether a template can hold its name."""
        name = self.name.partition("[")[0] if self.name.endswith("]") else self.name
        return bool(name) and name == name.strip() and name.isprintable() and not set(name) & set("{}[]")

    @cached_property
    def texts(self) -> list[str]:
        """The values as a template writes them; '' where there is none."""
        return [_text(value) for value in self.values]

    @cached_property
    def given(self) -> list[str]:
        return [text for text in self.texts if text]

    @cached_property
    def distinct(self) -> list[str]:
        return list(dict.fromkeys(self.given))

    @cached_property
    def stems(self) -> list[list[str]]:
        return [stems(text[:20_000]) for text in self.texts]

    @cached_property
    def words(self) -> float:
        """Of the text in the middle; pairs of characters where nothing stands between words."""
        return statistics.median(len(each) for each, text in zip(self.stems, self.texts, strict=True) if text)

    @property
    def optional(self) -> bool:
        return len(self.given) < len(self.values)

    @cached_property
    def nature(self) -> Nature:
        if not self.is_nameable:
            return "unnameable"
        given = [value for value, text in zip(self.values, self.texts, strict=True) if text]
        if not given:
            return "empty"
        if _mostly(given, _is_conversation):
            return "conversation"
        if len(self.distinct) == 1 and len(self.values) > 1:
            return "constant"
        if _mostly(given, lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value)):
            if not self.words:
                return "structured"
            return "text" if self.words / statistics.mean(map(len, given)) > _WORDS_OF_ITEM else "list"
        if _mostly(
            given, lambda value: isinstance(value, list) and all(isinstance(item, int | float) for item in value)
        ):
            return "number"
        if _mostly(given, lambda value: isinstance(value, dict | list)) or _mostly(self.given, is_structured):
            return "structured"
        return self._nature_of_texts()

    def _nature_of_texts(self) -> Nature:
        if _mostly(self.given, _ADDRESS.fullmatch):
            return "address"
        if _mostly(self.given, _NUMBER.fullmatch):
            years = _mostly(self.given, re.compile(r"(19|20)\d\d").fullmatch)
            whole = all(re.fullmatch(r"-?\d\d?(\.0)?", text) for text in self.distinct)
            few = self._few and len(self.distinct) <= _MOST_NUMBERS
            return "date" if years else "label" if whole and few else "number"
        if _mostly(self.given, _DATE.fullmatch):
            return "date"
        if _mostly(self.given, lambda text: part_word(text) or text.lower() == "unused"):
            return "split"
        if self.name.lower() == "answer" and {text.lower() for text in self.given} <= _JUDGEMENTS:
            return "split"  # of what was annotated: which rows are wanted
        if self._few and self.words <= _WORDS_OF_LABEL and max(map(len, self.given)) <= _LONGEST_LABEL:
            return "label"
        return "identifier" if self._identifies else "text"

    @property
    def _few(self) -> bool:
        """Values recur: each is there twice on average, in many rows three times."""
        rows = len(self.given)
        return len(self.distinct) <= max(2, min(_MOST_LABELS, rows // (3 if rows > 30 else 2)))

    @property
    def _identifies(self) -> bool:
        """Names without a space, hardly one of them twice, and no words: with digits, capitals or strokes inside."""
        odd = re.compile(r"(?=.*(\d|[a-z][A-Z]|[_/\\@]))[!-~]+")
        return _mostly(self.given, re.compile(r"[!-~]+").fullmatch) and (
            sum(bool(odd.fullmatch(text)) for text in self.given) >= 0.5 * len(self.given)
        )

    @cached_property
    def asks(self) -> float:
        """The fraction of its texts that ask: that end with a question mark, or begin as questions do."""
        return sum(bool(_ASKS.search(text)) for text in self.given) / max(1, len(self.given))

    @cached_property
    def keeps_records(self) -> bool:
        """Whether its JSON names things by numbers of a data base, as what programs keep does."""
        return _mostly(self.given, _ID.search)

    @cached_property
    def is_code(self) -> bool:
        """Queries, programs, markup: by how they begin, and by how much of them no sentence holds."""
        if _mostly(self.given, _QUERY.match):
            return _mostly(self.given, re.compile(r".*[*=(;,]|.*\bfrom\b", re.I | re.S).match)
        marks = sum(len(_CODE.findall(text)) for text in self.given)
        return marks > _MARKS * sum(map(len, self.stems))

    @cached_property
    def tongue(self) -> str | None:
        """The language of its texts, in English; None where they do not say."""
        text = " ".join(self.given[:: max(1, len(self.given) // 40)])[:8000]
        letters = sum(map(str.isalpha, text))
        for name, script in _SCRIPTS.items():
            if len(re.findall(f"[{script}]", text)) > (0.02 if name == "Ukrainian" else 0.3) * letters:
                return name
        codes = [language(text[i : i + 2000]) for i in range(0, len(text), 2000)]
        found = [code for code in codes if code]
        return LANGUAGES[statistics.mode(found)] if found else None


def _text(value: Any) -> str:
    try:
        return "" if value in (None, [], {}) else text_of(value).strip()
    except Unusable:  # NaN
        return ""


def _mostly(values: Sequence[Any], test: Any) -> bool:
    return sum(bool(test(value)) for value in values) >= _MOST * len(values)


def _is_conversation(value: Any) -> bool:
    """Whether it is a list of messages (role and content, or from and value)."""
    return isinstance(value, list) and all(
        isinstance(turn, dict) and (turn.keys() >= {"role", "content"} or turn.keys() >= {"from", "value"})
        for turn in value
    )
