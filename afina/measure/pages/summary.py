"""An evaluation in words and numbers, for report, card and terminal.

`evaluation` is the object of `evaluation.json`.
"""

from collections.abc import Iterator
from typing import Any

from afina.core.errors import counted
from afina.measure.general_text import LANGUAGES
from afina.measure.intervals import FEWEST_ROWS
from afina.measure.metrics import METRICS, described

UNDEFINED = "undefined"


def number(name: str, value: float | None, sign: bool = False) -> str:
    """A score of the metric `name` as people read it; with `sign` a difference of two. None is undefined."""
    return described(name).absent if value is None else described(name).shown(value, sign)


def label(name: str) -> str:
    """A metric's name in words."""
    return described(name).label


def table(evaluation: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Base, adapted, difference and interval of each score, as text."""
    base, adapted = evaluation["base"], evaluation["adapted"]
    positions = {metric.name: i for i, metric in enumerate(sorted(METRICS, key=lambda each: each.group))}
    for name in sorted(base, key=lambda name: positions.get(name, len(positions))):
        if isinstance(base[name], dict):
            continue
        difference = evaluation["difference"].get(name)
        row = {"label": label(name), "base": number(name, base[name]), "adapted": number(name, adapted[name])}
        both = base[name] is not None and adapted[name] is not None
        row["difference"] = number(name, adapted[name] - base[name] if both else None, sign=True)
        row["interval"] = interval(name, difference) if difference else ""
        row["tone"] = {"better": "good", "worse": "bad"}.get(difference["verdict"], "") if difference else ""
        yield row


def interval(name: str, difference: dict[str, Any]) -> str:
    """The interval of a difference of the metric `name`, as people read it."""
    if difference["low"] is None:
        return UNDEFINED
    low = number(name, difference["low"], sign=True).removesuffix(" points")
    return f"{low} to {number(name, difference['high'], sign=True)}"


def general_lines(evaluation: dict[str, Any]) -> list[str]:
    """The loss on general text, before and after, in words."""
    return [
        f"loss on general {LANGUAGES[name]} text {losses['base']:.2f} → {losses['adapted']:.2f} nats per token "
        f"({interval('loss', losses['difference'])})"
        for name, losses in evaluation["general"].items()
    ]


def verdict(evaluation: dict[str, Any]) -> str:
    """The result in a sentence."""
    name = evaluation["main_metric"]
    words = _compared(evaluation["difference"][name], name, "the base")
    trivial = _compared(evaluation["over_trivial"], name, "the best trivial baseline")
    return f"The adapted model {words}; it {trivial}."


def _compared(difference: dict[str, Any], name: str, other: str) -> str:
    size = f"{number(name, difference['value'], True)} {label(name)}"
    within = f"95 % interval {interval(name, difference)}"
    if difference["verdict"] == UNDEFINED:
        return (
            f"cannot be compared with {other}: {label(name)} or its interval is undefined on "
            f"{counted(difference['rows'], 'row')}"
        )
    if difference["rows"] < FEWEST_ROWS:
        return f"cannot be compared with {other}: {counted(difference['rows'], 'row is')} too few ({size})"
    than = "from" if difference["verdict"] == "not distinguishable" else "than"
    return f"is {difference['verdict']} {than} {other} ({size}, {within})"


def trivial_lines(evaluation: dict[str, Any]) -> list[str]:
    """The score of each trivial baseline, in words."""
    name = evaluation["main_metric"]
    return [f"{what} {number(name, scores[name])} {label(name)}" for what, scores in evaluation["trivial"].items()]
