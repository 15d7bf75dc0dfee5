"""An evaluation in the reader's words: its verdict in a sentence, its scores with their intervals, and where it errs.

`evaluation` is the object of `evaluation.json`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from afina.measure.metric import percent
from afina.measure.pages.summary import interval, label, number, table
from afina.ui.studio.words import SIGNS, Words

_STATES = {"better": "better", "worse": "worse", "not distinguishable": "same", "too few rows to tell": "few"}
_TONES = {"better": "good", "worse": "bad"}
_NUMBER = re.compile(r"\d[\d.,]*")
_ENGLISH = {" points": "points", " to ": "to", "undefined": "undefined", "not timed": "absent"}
_MATRIX = 12  # labels at most of which each pair is shown; of more the most frequent mistakes
_MISTAKES = 12


@dataclass(frozen=True)
class Table:
    """Numbers under a heading: `lines`, each with its name, of which `corner` says what it is of, and `columns`."""

    heading: str
    corner: str
    columns: list[str]
    lines: list[tuple[str, list[str]]]


def local(words: Words, text: str) -> str:
    """Scores, differences and intervals as the language writes them."""
    for english, key in _ENGLISH.items():
        text = text.replace(english, words(f"judge.{key}"))
    return _NUMBER.sub(lambda found: found[0].translate(SIGNS), text) if words.language == "pt" else text


def metric(words: Words, name: str) -> str:
    """What is measured, in words."""
    return words(f"judge.metric_{name}") if words.has(f"judge.metric_{name}") else label(name)


def score(words: Words, name: str, value: float | None, sign: bool = False) -> str:
    """A score of the metric `name`, or with `sign` a difference of two."""
    return local(words, number(name, value, sign))


def state(difference: Mapping[str, Any]) -> str:
    """better, worse, same, few (rows) or undefined."""
    return _STATES.get(difference["verdict"], "undefined")


def tone(difference: Mapping[str, Any]) -> str:
    """good, bad or nothing."""
    return _TONES.get(difference["verdict"], "")


def sentence(words: Words, key: str, name: str, difference: Mapping[str, Any], **more: Any) -> str:
    """The text of `key` that fits a difference of the metric `name`: `key_better`, `key_worse` …"""
    return words(
        f"{key}_{state(difference)}",
        metric=metric(words, name),
        difference=score(words, name, difference["value"], sign=True),
        interval=local(words, interval(name, dict(difference))),
        rows=words.number(difference["rows"]),
        **more,
    )


def verdict(words: Words, evaluation: Mapping[str, Any]) -> str:
    """The result in one sentence: the adapted model against its base."""
    name = evaluation["main_metric"]
    scores = {which: score(words, name, evaluation[which][name]) for which in ("base", "adapted")}
    return sentence(words, "judge.verdict", name, evaluation["difference"][name], **scores)


def trivial(words: Words, evaluation: Mapping[str, Any]) -> str:
    """The adapted model against answers that need no model."""
    name, difference = evaluation["main_metric"], evaluation["over_trivial"]
    adapted = evaluation["adapted"][name]
    known = adapted is not None and difference["value"] is not None
    best = score(words, name, adapted - difference["value"] if known else None)
    return sentence(words, "judge.trivial", name, difference, best=best)


def rows(words: Words, evaluation: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Of each metric its `label`, what it `means`, `base`, `adapted`, `difference`, `interval` and `tone`."""
    names = {label(name): name for name in evaluation["base"]}
    for row in table(dict(evaluation)):
        name = names[row["label"]]
        told = {key: local(words, text) for key, text in row.items() if key not in ("label", "tone")}
        means = words(f"judge.means_{name}") if words.has(f"judge.means_{name}") else ""
        yield {"label": metric(words, name), "means": means, "tone": row["tone"], **told}


def forgotten(words: Words, evaluation: Mapping[str, Any]) -> Table | None:
    """The loss on general text before and after, by language; None where it was not measured."""
    lines = []
    for language, losses in evaluation.get("general", {}).items():
        name = words.language_name(language).capitalize()
        before, after = (score(words, "loss", losses[which]) for which in ("base", "adapted"))
        lines.append((name, [before, after, local(words, interval("loss", losses["difference"]))]))
    columns = [words(f"judge.{name}") for name in ("base", "adapted", "interval")]
    return Table(words("judge.forgotten"), words("judge.language"), columns, lines) if lines else None


def details(words: Words, evaluation: Mapping[str, Any]) -> Iterator[Table]:
    """Where the errors are: by label, which labels are confused, by field, by length."""
    base, adapted = evaluation["base"], evaluation["adapted"]
    for name, lay_out in (("per_class", _labels), ("confusion", _confusions), ("per_field", _fields)):
        if adapted.get(name):
            yield lay_out(words, base.get(name) or {}, adapted[name])
    main = evaluation["main_metric"]
    if thirds := evaluation.get("groups", {}).get("by_length"):
        lines = [
            (
                words("judge.tokens", first=each["from"], last=each["to"]),
                [words.number(each["rows"]), *(score(words, main, each[which]) for which in ("base", "adapted"))],
            )
            for each in thirds
        ]
        heading = words("judge.by_length", metric=metric(words, main))
        columns = [words(f"judge.{name}") for name in ("rows", "base", "adapted")]
        yield Table(heading, words("judge.length"), columns, lines)


def _share(words: Words, value: float | None) -> str:
    return words("judge.undefined") if value is None else local(words, percent(value))


def _labels(words: Words, base: dict[str, Any], adapted: dict[str, Any]) -> Table:
    columns = [words(f"judge.{name}") for name in ("rows", "base_f1", "adapted_f1", "precision", "recall")]
    lines = []
    for name, found in adapted.items():
        shares = (base.get(name, {}).get("f1"), found["f1"], found["precision"], found["recall"])
        lines.append((name, [words.number(found["count"]), *(_share(words, each) for each in shares)]))
    return Table(words("judge.by_label"), words("chat.label"), columns, lines)


def _confusions(words: Words, base: dict[str, Any], adapted: dict[str, Any]) -> Table:
    """Each pair of a few labels, or the most frequent mistakes among many; of the adapted model."""
    labels, counts = adapted["labels"], adapted["counts"]
    answers = [*labels, words("judge.other")]
    if len(labels) <= _MATRIX:
        lines = [(right, [words.number(n) for n in line]) for right, line in zip(labels, counts, strict=True)]
        return Table(words("judge.confusions"), words("judge.right_and_answer"), answers, lines)
    mistakes = [
        (n, right, answer)
        for right, line in zip(labels, counts, strict=True)
        for answer, n in zip(answers, line, strict=True)
        if right != answer and n
    ]
    most = sorted(mistakes, key=lambda each: -each[0])[:_MISTAKES]
    columns = [words("judge.taken_for"), words("judge.rows")]
    lines = [(right, [answer, words.number(n)]) for n, right, answer in most]
    return Table(words("judge.mistakes"), words("judge.expected"), columns, lines)


def _fields(words: Words, base: dict[str, Any], adapted: dict[str, Any]) -> Table:
    lines = [(name, [_share(words, base.get(name)), _share(words, value)]) for name, value in adapted.items()]
    columns = [words("judge.base"), words("judge.adapted")]
    return Table(words("judge.by_field"), words("judge.field"), columns, lines)
