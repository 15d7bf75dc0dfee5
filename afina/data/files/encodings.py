"""Which encoding a text is in: by its byte-order mark or its NULs, as UTF-8 where all of it is that, else by what it
looks like.

`chardet` ranks the encodings that can read a sample by how usual their letters are beside each other in any language.
What it does not look at decides near ties: a reading in which words mix alphabets, or letters stand beside symbols,
is a wrong one. Where two readings stay close, the choice is doubtful, and that is said.
"""

import codecs
import encodings.aliases
import math
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from afina.core.errors import DataError, near
from afina.data.files.oddities import oddities

REMEDY = "name the right one with --data.encoding NAME, or save the file as UTF-8"
# By chardet's names: Python's, what messages call it, and how likely it is beforehand: Windows' western code page is
# the most frequent by far, what only DOS and old Macs wrote is rare. Of equal readings the first here is named.
_KNOWN = {
    "cp1252": ("cp1252", "Windows-1252", 5.0),
    **{f"cp{n}": (f"cp{n}", f"Windows-{n}", 0.0) for n in (1250, 1251, *range(1253, 1259), 874)},
    "cp932": ("cp932", "Shift-JIS", 0.0), "euc_jis_2004": ("euc_jp", "EUC-JP", 0.0),
    "iso2022_jp_2": ("iso2022_jp_2", "ISO-2022-JP", 0.0), "gb18030": ("gb18030", "GBK", 0.0),
    "big5hkscs": ("big5hkscs", "Big5", 0.0), "cp949": ("cp949", "EUC-KR", 0.0),
    "koi8-r": ("koi8-r", "KOI8-R", 0.0), "koi8-u": ("koi8-u", "KOI8-U", 0.0),
    **{f"iso8859-{n}": (f"iso8859-{n}", f"ISO-8859-{n}", 0.0 if n in (2, 7, 15) else -15.0) for n in (2, 7, 15, 5, 6)},
    **{f"cp{n}": (f"cp{n}", f"DOS code page {n}", -15.0) for n in (850, 852, 866)},
    "mac-roman": ("mac-roman", "Mac Roman", -15.0), "mac-cyrillic": ("mac-cyrillic", "Mac Cyrillic", -15.0),
}  # fmt: skip
_LABELS = {codec: label for codec, label, _ in _KNOWN.values()}
_OF_NAMES = ("idna", "punycode")  # of hosts' names: they take for ever for a text, and mean nothing
_SAMPLE = 1 << 15  # bytes of passages that are not ASCII
_GROUPS = 8  # samples that they are divided into, so that one damaged byte does not rule out an encoding
_CONTROL = bytes(set(range(32)) - set(b"\t\n\r\f\x0b\x1a\x1b\0")) + b"\x7f"
_PASSAGE = re.compile(rb'[^\n"]*[\x80-\xff][^\n"]*')  # neither byte is part of a character in any of the encodings
_WORD = re.compile(rb"[^\s,;]*[\x80-\xff][^\s,;]*")
_ESCAPE = b"\x1b$"  # begins Japanese in ISO-2022
_SURE = 5.0  # by so much the best reading must be better than any other
_FEW = 4  # times so much where there are but one or two words
_ODD = 10.0  # what an odd pair of characters counts against a reading
_UTF8_SHARE = 0.9  # from this share of valid passages on a text is damaged UTF-8
_MIXED_SHARE = 0.3  # from this share on it is a mixture
_MOST_ODD = 0.2  # odd pairs per character that is not ASCII; beyond, no reading makes sense
_C1 = re.compile(r"[\x80-\x9f]")  # controls that no text has: they show that a Windows code page was meant


@dataclass(frozen=True)
class Encoding:
    """How bytes are read as text: `name` is Python's, `nuls` how many NUL bytes are left out. `said` is what a user
    should know of it, `doubt` why it may be wrong. `guessed` is neither certain nor given. What `errors` lets through
    of damaged text makes the rows that hold it unusable."""

    name: str
    said: str = ""
    doubt: str = ""
    guessed: bool = False
    errors: str = "strict"
    nuls: int = 0


def label(name: str) -> str:
    """What messages call a codec: its usual name, and Python's."""
    return f"{_LABELS[name]} ({name})" if name in _LABELS else name.upper()


def known_encoding(name: str) -> str:
    """`name`, where Python knows a text encoding of that name. Raises `ValueError`."""
    try:
        codecs.getincrementaldecoder(name)().decode(b"a")
        if codecs.lookup(name).name not in _OF_NAMES and isinstance(codecs.decode(b"", name), str):
            return name
    except Exception:  # noqa: S110 - whatever decoders of what is no text raise
        pass
    names = sorted({*encodings.aliases.aliases, *encodings.aliases.aliases.values()})
    raise ValueError(f"no encoding has that name.{near(name.lower().replace('-', '_'), names)}")


def find_encoding(
    read: Callable[[], Iterator[bytes]], name: str, given: str | None = None, expected: str | None = None
) -> Encoding:
    """The encoding of a text, which `read` gives from the start. `given` decides; `expected` is that of the text if it
    is neither marked nor UTF-8.

    Raises `DataError` where the file called `name` is binary, or not what is given.
    """
    look = _Look()
    for chunk in read():
        look.add(chunk)
    look.end()
    marked = _by_mark(look.first)
    wide = None if marked else _wide(look.first)
    if given:
        found = _given(read, given, marked or wide, name)
        return replace(found, said=_against(read, look, given)) if found.name != marked else found
    if marked := marked or wide:
        said = (
            "begins with a byte-order mark, which is left out"
            if marked == "utf-8-sig"
            else f"is read as {marked.upper()}, because it is not UTF-8"
        )
        return Encoding(marked, said)
    if look.is_binary:
        raise DataError(f"data {name} is a binary file", f"export it as text, or {REMEDY}")
    if look.is_utf8 and not (look.escapes and _readings(look.samples)):
        return Encoding("ascii" if look.is_ascii else "utf-8", nuls=look.nuls)
    return replace(_guess(read, look, expected), nuls=look.nuls)


class _Look:
    """What one pass over the bytes shows."""

    def __init__(self) -> None:
        self.first, self.nuls = b"", 0
        self.is_ascii = self.is_utf8 = True
        self.bad_line = 0  # the first that is not UTF-8
        self.escapes = False
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._lines = self._size = 0
        self.passages = dict[bytes, None]()
        self._tail = b""  # a passage that the next chunk may go on with

    def add(self, chunk: bytes) -> None:
        self.first, self._tail = self.first or chunk, b""
        self.nuls += chunk.count(0)
        self.escapes = self.escapes or _ESCAPE in chunk
        if not chunk.isascii():
            self.is_ascii = False
            self._take(chunk)
        if self.is_utf8:
            self._decode(chunk)

    def end(self) -> None:
        if self.is_utf8:
            self._decode(b"", True)

    def _decode(self, chunk: bytes, final: bool = False) -> None:
        try:
            self._decoder.decode(chunk, final)
            self._lines += chunk.count(b"\n")
        except UnicodeDecodeError as error:
            self.is_utf8 = False
            self.bad_line = self._lines + error.object[: error.start].count(b"\n") + 1

    def _take(self, chunk: bytes) -> None:
        """Passages for the sample, but for those that the border of two chunks may have cut."""
        for match in _PASSAGE.finditer(chunk):
            if self._size >= _SAMPLE:
                return
            if match.end() == len(chunk):
                self._tail = match[0]
            elif match.start() or chunk is self.first:
                self._keep(match[0])

    def _keep(self, passage: bytes) -> None:
        if passage and passage not in self.passages:
            passage = passage if len(passage) <= _SAMPLE else passage[:_SAMPLE].rpartition(b" ")[0]
            self._size += len(passage) + 1
            self.passages[passage] = None

    @property
    def is_binary(self) -> bool:
        start = self.first
        return len(start.translate(None, _CONTROL)) < 0.99 * len(start) or start.count(0) > 0.05 * len(start)

    @property
    def samples(self) -> list[bytes]:
        """The passages in groups, and by itself what stands at the end, which may be cut."""
        passages, tail = list(self.passages), [self._tail] if self._tail else []
        groups = _GROUPS if len(passages) >= 2 * _GROUPS else 1
        found = [b"\n".join(passages[i::groups]) for i in range(groups)] if passages else []
        return [*found, *tail] or [self.first[:_SAMPLE]]

    def margin(self, best: str) -> float:
        """By how much the reading as `best` must be better than another: words that come again show nothing more, and
        one or two words show little, but for the usual encoding."""
        words = [word for passage in self.passages for word in _WORD.findall(passage)]
        distinct = len(set(words)) or 1
        few = _FEW if distinct <= 2 and best != "cp1252" else 1
        return _SURE * few * max(1, len(words)) / distinct

    @property
    def utf8_share(self) -> float:
        """How many of the passages are UTF-8."""
        passages = list(self.passages) or [self._tail]
        # Surrogates are what some programs (Java's, Oracle's) write for characters beyond the first plane.
        return sum(_decodes(each, "utf-8", "surrogatepass") for each in passages) / len(passages)


def _decodes(text: bytes, name: str, errors: str = "strict") -> bool:
    try:
        text.decode(name, errors)
        return True
    except UnicodeDecodeError:
        return False


def _by_mark(start: bytes) -> str | None:
    marks = {
        codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
        codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
    }  # fmt: skip
    return next((name for mark, name in marks.items() if start.startswith(mark)), None)


def _wide(start: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark: ASCII characters, line ends above all, are in it as NULs and themselves."""
    if not start.count(0):
        return None
    start = start[: min(len(start), 1 << 16) // 4 * 4] if len(start) % 4 == 0 or len(start) > 64 else start
    for name in ("utf-32-le", "utf-32-be"):
        if len(start) >= 8 and len(start) % 4 == 0 and _decodes(start, name) and _reads_as_text(start.decode(name)):
            return name
    best = max(("utf-16-le", "utf-16-be"), key=lambda name: _ascii_units(start, name))
    units = _ascii_units(start, best)
    ends = start.count(b"\n")
    aligned = _units(start, best).count("\n")
    usual = units > 0.4 * (len(start) // 2) or (ends and aligned >= 0.5 * ends)
    return best if usual and _reads_as_text(_units(start, best)) else None


def _units(start: bytes, name: str) -> str:
    return start[: len(start) // 2 * 2].decode(name, "replace")


def _ascii_units(start: bytes, name: str) -> int:
    return sum(char in "\t\r\n" or " " <= char <= "~" for char in _units(start, name))


def _reads_as_text(text: str) -> bool:
    odd = sum(unicodedata.category(char) in ("Cc", "Cn", "Co", "Cs") and char not in "\t\r\n\f" for char in text)
    return odd + text.count("\ufffd") <= 0.01 * len(text)


def _given(read: Callable[[], Iterator[bytes]], given: str, marked: str | None, name: str) -> Encoding:
    """The encoding that the user names. Raises `DataError` where a byte is not of it."""
    plain = codecs.lookup(given).name
    if marked and re.sub(r"-|(le|be|sig)$", "", marked) == re.sub(r"-|_|(le|be|sig)$", "", plain):
        plain = marked
    elif marked and marked.startswith(("utf-16", "utf-32")):
        raise DataError(
            f"{name} is {marked.upper()}, not {plain}, as --data.encoding says", "leave --data.encoding out"
        )
    found = _damage(read, plain)
    if found:
        line, at, byte = found
        raise DataError(
            f"{name}:{line}: byte {byte:#04x} (number {at + 1} of the file) is not {plain}, as --data.encoding says",
            "leave --data.encoding out, so that it is guessed, or name another",
        )
    return Encoding(plain)


def _damage(read: Callable[[], Iterator[bytes]], name: str, controls: bool = True) -> tuple[int, int, int] | None:
    """Line, position and value of the first byte that is not of the encoding, or (without `controls`) a control that no
    text has."""
    decoder = codecs.getincrementaldecoder(name)()
    line, at = 1, 0

    def decode(chunk: bytes, final: bool) -> tuple[int, int, int] | None:
        nonlocal line, at
        try:
            text = decoder.decode(chunk, final)
            if not controls and (match := _C1.search(text)):
                return line + text[: match.start()].count("\n"), at + match.start(), ord(match[0])
            line, at = line + text.count("\n"), at + len(chunk)
            return None
        except UnicodeDecodeError as error:
            good = error.object[: error.start]
            offset = at - (len(error.object) - len(chunk)) + error.start
            return line + good.decode(name, "ignore").count("\n"), offset, error.object[error.start]
        except UnicodeError:  # UTF-16 or UTF-32 without a mark
            return line, at, chunk[0]

    for chunk in read():
        if found := decode(chunk, False):
            return found
    return decode(b"", True)


def _against(read: Callable[[], Iterator[bytes]], look: _Look, given: str) -> str:
    """What is said where a text that is UTF-8 beyond doubt is read as something else, or gets controls."""
    plain = codecs.lookup(given).name
    if look.is_utf8 and not look.is_ascii and plain != "utf-8":
        return f"is valid UTF-8, and read as {given}, as --data.encoding says"
    if plain.startswith("iso8859") and (found := _damage(read, given, controls=False)):
        return (
            f"as {given} has the control character U+{found[2]:04X} in line {found[0]}: a Windows code page is likelier"
        )
    return ""


@dataclass(frozen=True)
class _Reading:
    """A sample as an encoding reads it; of two the one with the higher `score` is likelier. `oddities` are counted."""

    name: str
    text: str
    score: float
    oddities: int


def _guess(read: Callable[[], Iterator[bytes]], look: _Look, expected: str | None) -> Encoding:
    decides = "; --data.encoding decides"
    if not look.is_utf8 and look.utf8_share >= _UTF8_SHARE:
        said = f"is UTF-8 but for some damaged bytes, the first in line {look.bad_line}: rows with them cannot be used"
        return Encoding("utf-8", said + decides, guessed=True, errors="surrogateescape")
    if expected and _damage(read, expected) is None:
        return Encoding(expected, f"is read as {label(expected)}, as in training{decides}", guessed=True)
    readings = _readings(look.samples)
    margin = look.margin(readings[0].name) if readings else 0.0
    likely = [each for each in readings if readings[0].score - each.score < margin]
    whole = next((each for each in likely if _damage(read, each.name, False) is None), None)
    best = whole or (
        readings[0] if readings else _Reading("cp1252", look.samples[0].decode("cp1252", "replace"), 0.0, 0)
    )
    said = f"is read as {label(best.name)}, because it is not UTF-8"
    if whole is None and (found := _damage(read, best.name)):
        said += f", but for some damaged bytes, the first in line {found[0]}: rows with them cannot be used"
    errors = "strict" if whole else "surrogateescape"
    return Encoding(best.name, said + decides, _doubt(look, readings, best), True, errors)


def _readings(samples: list[bytes]) -> list[_Reading]:
    """The different texts that encodings make of the samples, the likeliest first. One that cannot read a sample, which
    may be damaged or cut, is not out for it."""
    import chardet

    whole = b"\n".join(samples)
    ranked: list[dict[Any, float]] = [
        {
            each["encoding"]: len(sample) * math.log(max(each["confidence"], 1e-9))
            for each in chardet.detect_all(
                sample, ignore_threshold=True, compat_names=False, include_encodings=list(_KNOWN), max_bytes=len(sample)
            )
        }
        for sample in samples
    ]
    found: dict[str, _Reading] = {}
    for key, (name, _, prior) in _KNOWN.items():
        known = [scores[key] for scores in ranked if key in scores]
        if not known or len(known) < 0.5 * len(ranked):
            continue
        text = whole.decode(name, "surrogateescape")
        if text not in found and not _C1.search(text):
            odd = oddities(text)
            # Where it cannot read a sample, it is as bad as the worst that can.
            missed = sum(min(scores.values(), default=0.0) for scores in ranked if key not in scores)
            found[text] = _Reading(name, text, sum(known) + missed - _ODD * odd + prior, odd)
    return sorted(found.values(), key=lambda each: -each.score)


def _doubt(look: _Look, readings: list[_Reading], best: _Reading) -> str:
    if not look.is_utf8 and look.utf8_share >= _MIXED_SHARE:
        return f"{look.utf8_share:.0%} of the text is UTF-8, the rest is not (the first in line {look.bad_line})"
    if best.oddities > max(2, _MOST_ODD * sum(char > "\x7f" for char in best.text)):
        return f"in no encoding does it look like text; as {label(best.name)} it says {_shown(best.text, best.text)}"
    margin = look.margin(best.name)
    others = [each for each in readings if each is not best and best.score - each.score < margin]
    if not others:
        return ""
    other = others[0]
    return (
        f"its encoding is doubtful: as {label(best.name)} it says {_shown(best.text, other.text)}, "
        f"as {label(other.name)} {_shown(other.text, best.text)}"
    )


def _shown(text: str, other: str) -> str:
    """The words of a text by which it first differs from another, else its first that is not ASCII."""
    words, others = text.split(), other.split()
    pairs = zip(words, others, strict=False)
    word = next((a for a, b in pairs if a != b), None) or next((w for w in words if not w.isascii()), text)
    return repr(word[:40])
