"""The words of the page in the reader's language: texts by key, from the catalogue in `texts/`, and what is refused."""

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

from afina.core.errors import AfinaError, InputError
from afina.core.events import minutes
from afina.core.text import visible

HERE = Path(__file__).parent
LANGUAGES = ("en", "pt")
_LONGEST_SAYING = 2_000  # letters of a job's sentence that is looked for among the patterns
_COUNT = r"\d[\d,]*"
_NUMBER = re.compile(r"\d[\d.,]*( %)?")
SIGNS = str.maketrans(",.", ".,")  # from English numbers to Portuguese ones


@cache
def texts() -> dict[str, dict[str, str]]:
    """By key (`file.name`) the text in each language, from the files in `texts/`."""
    found: dict[str, dict[str, str]] = {}
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where libyaml is
    for path in sorted((HERE / "texts").glob("*.yaml")):
        for name, said in yaml.load(path.read_text(encoding="utf-8"), loader).items():  # noqa: S506 - a safe one
            found[f"{path.stem}.{name}"] = said
    return found


@cache
def _sayings() -> list[tuple[re.Pattern[str], str]]:
    """What jobs say in English, as patterns, each with its key."""
    found = []
    for key, said in texts().items():
        if "is" in said:
            parts = Formatter().parse(said["is"])
            pattern = "".join(
                re.escape(text) + (f"(?P<{name}>{_COUNT if name == 'count' else '.+?'})" if name else "")
                for text, name, _, _ in parts
            )
            found.append((re.compile(pattern, re.DOTALL), key))
    return found


def language_of(accepted: str) -> str:
    """The first language of an `Accept-Language` that there are words in."""
    ranked = []
    for position, part in enumerate(accepted.split(",")):
        name, _, weight = part.replace(" ", "").partition(";q=")
        quality = float(weight) if re.fullmatch(r"[01](\.\d{0,3})?", weight, re.ASCII) else 1.0
        ranked += [(-quality, position, name.split("-")[0].lower())] if quality else []
    return next((name for _, _, name in sorted(ranked) if name in LANGUAGES), LANGUAGES[0])


class Words:
    """`words("data.title", rows=3)` is the text of a key in one language, with what is put into it; what is put in
    shows control characters as signs."""

    def __init__(self, language: str) -> None:
        self.language = language

    def __call__(self, key: str, **values: Any) -> str:
        text = texts()[key][self.language]
        return text.format_map({name: visible(str(value)) for name, value in values.items()}) if values else text

    def has(self, key: str) -> bool:
        return key in texts()

    def said(self, text: str) -> str:
        """What a job says in English, as the page says it; nothing where the catalogue does not know it."""
        if len(text) > _LONGEST_SAYING:
            return ""
        for pattern, key in _sayings():
            if match := pattern.fullmatch(text):
                values = {name: self._part(name, value) for name, value in match.groupdict().items()}
                return self(key, **values) if all(values.values()) else ""
        return ""

    def knows(self, told: Iterable[str]) -> bool:
        """Whether the page has words for all of it."""
        return all(map(self.said, told))

    def _part(self, name: str, value: str) -> str:
        """What stands in a job's sentence: another sentence (nothing where that is not known), a language, a number."""
        if name == "reason":
            return self.said(value)
        if name == "language":
            known = (said for key, said in texts().items() if key.startswith("languages.of_"))
            return next((said[self.language] for said in known if said["en"] == value), value)
        return value.translate(SIGNS) if self.language == "pt" and _NUMBER.fullmatch(value) else value

    def language_name(self, code: str) -> str:
        """A language by its name."""
        key = f"languages.of_{code}"
        return self(key) if self.has(key) else code

    def number(self, value: float, digits: int = 0) -> str:
        shown = f"{value:,.{digits}f}"
        return shown.translate(SIGNS) if self.language == "pt" else shown

    def time(self, seconds: float) -> str:
        """42 s, 3.5 min, 2.1 h."""
        shown = minutes(seconds)
        return shown.replace(".", ",").replace("days", "dias") if self.language == "pt" else shown

    def date(self, text: str) -> str:
        """A date, and perhaps a time, of which `text` begins with year, month and day."""
        day, *time = text.split(" ")
        return " ".join(["/".join(reversed(day.split("-"))), *time]) if self.language == "pt" else text

    def bytes(self, count: float) -> str:
        unit, size = next(((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if count >= s), ("B", 1.0))
        return f"{self.number(count / size, 1 if size > 1 else 0)} {unit}"

    def setting(self, path: str) -> str:
        """What a setting of a run is called, by its dotted path."""
        key = f"settings.{path}"
        return self(key) if self.has(key) else path

    def value(self, value: Any, path: str = "") -> str:
        """A value as one reads it, of the setting `path`: three digits of a number that is no whole one."""
        if path == "data.kind" and self.has(f"data.task_{value}"):
            return self(f"data.task_{value}")
        if isinstance(value, bool):
            return self("train.is_true" if value else "train.is_false")
        if isinstance(value, float):
            shown = f"{Decimal(f'{value:.3g}'):,f}"
            return shown.translate(SIGNS) if self.language == "pt" else shown
        if isinstance(value, list | tuple):
            return ", ".join(map(self.value, value))
        if isinstance(value, dict):
            return ", ".join(f"{name}: {self.value(each)}" for name, each in value.items())
        return self.number(value) if isinstance(value, int) else "—" if value is None else str(value)

    def kind(self, error: AfinaError | Mapping[str, Any]) -> str:
        """What kind of refusal it is, in a sentence; of work that failed `error` is what its `error.json` holds."""
        name = error["kind"] if isinstance(error, Mapping) else getattr(error, "kind", type(error).__name__)
        key = f"kinds.{name}"
        return self(key if self.has(key) else "kinds.InputError")


class Refused(InputError):
    """What the page itself does not do: `refused.KEY` says why, and `refused.KEY_remedy` what to do."""

    def __init__(self, key: str, status: int = 400, **values: Any) -> None:
        self.key, self.status, self.values = key, status, values
        super().__init__(*self.said(Words(LANGUAGES[0])))

    def said(self, words: Words) -> tuple[str, str]:
        """The problem and the remedy."""
        key = f"refused.{self.key}"
        remedy = f"{key}_remedy"
        return words(key, **self.values), words(remedy, **self.values) if words.has(remedy) else ""


def recorded(error: AfinaError) -> dict[str, Any]:
    """An error as `error.json` holds it: its `kind`, `problems` and `remedy`."""
    return {"kind": getattr(error, "kind", type(error).__name__), **error.json()["error"]}


class Told(InputError):
    """What was `recorded` of an error."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        self.kind = str(error["kind"])
        super().__init__(error["problems"], error["remedy"])
