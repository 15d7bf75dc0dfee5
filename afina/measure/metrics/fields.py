"""Scores of JSON answers by their fields: accuracy, precision, recall and F1, validity, and accuracy per field."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from afina.measure.metric import Floats, Group, Kinds, Metric, Predictions, RowStats, Table, mean, percent, ratio


def parsed(text: str) -> Any:
    """The parsed text, or None where it is not JSON (or is null)."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def equal(a: Any, b: Any) -> bool:
    """Whether two JSON values are the same; true is not 1."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def same_json(answer: str, reference: str) -> bool:
    """Whether `answer` is JSON, and the same as `reference`."""
    value = parsed(answer)
    return value is not None and equal(value, parsed(reference))


def _field_accuracy(predictions: Predictions) -> RowStats:
    """The mean over rows, each against the best of its references."""
    pairs = zip(predictions.answers, predictions.references, strict=True)
    return mean([max(_share_of_fields(answer, ref) for ref in refs) for answer, refs in pairs])


def _share_of_fields(answer: str, reference: str) -> float:
    """Fields that agree over fields that either has; where one is not a JSON object, 1 if both are equal, else 0."""
    wanted, given = parsed(reference), parsed(answer)
    if not isinstance(wanted, dict) or not isinstance(given, dict):
        return float(same_json(answer, reference))
    names = wanted.keys() | given.keys()
    if not names:
        return 1.0
    return sum(n in wanted and n in given and equal(wanted[n], given[n]) for n in names) / len(names)


def _counts(predictions: Predictions) -> Floats:
    """A line per row: fields that are right (the value of the first reference's), fields given, fields wanted."""
    counts = []
    for answer, refs in zip(predictions.answers, predictions.references, strict=True):
        wanted, given = (value if isinstance(value, dict) else {} for value in (parsed(refs[0]), parsed(answer)))
        right = sum(name in wanted and equal(wanted[name], value) for name, value in given.items())
        counts.append((right, len(given), len(wanted)))
    return np.array(counts, dtype=np.float64)


def _precision(predictions: Predictions) -> RowStats:
    """Of all fields together (micro), as recall and F1."""
    return RowStats(_counts(predictions), lambda total, _: ratio(total[0], total[1]))


def _recall(predictions: Predictions) -> RowStats:
    return RowStats(_counts(predictions), lambda total, _: ratio(total[0], total[2]))


def _f1(predictions: Predictions) -> RowStats:
    return RowStats(_counts(predictions), lambda total, _: ratio(2 * total[0], total[1] + total[2]))


def _valid(predictions: Predictions) -> RowStats:
    return mean([float(parsed(answer) is not None) for answer in predictions.answers])


def per_field(predictions: Predictions) -> dict[str, Any]:
    """The share of the rows whose answer has each field of the first reference right."""
    right: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for answer, refs in zip(predictions.answers, predictions.references, strict=True):
        wanted, given = parsed(refs[0]), parsed(answer)
        for name, value in wanted.items() if isinstance(wanted, dict) else ():
            count[name] += 1
            right[name] += isinstance(given, dict) and name in given and equal(given[name], value)
    return {name: right[name] / n for name, n in count.items()}


def _field_tables(base: dict[str, Any], adapted: dict[str, Any]) -> Iterator[Table]:
    yield "Each field", ["base", "adapted"], [(n, [percent(base[n]), percent(v)]) for n, v in adapted.items()]


def frequent_values(references: Sequence[str]) -> str:
    """The object that has the most frequent value of each field of `references`, or their most frequent text."""
    objects = [parsed(text) for text in references]
    if not all(isinstance(value, dict) for value in objects):
        return Counter(references).most_common(1)[0][0]
    values: dict[str, Counter[str]] = {}
    for row in objects:
        for name, value in row.items():
            values.setdefault(name, Counter())[json.dumps(value, sort_keys=True, ensure_ascii=False)] += 1
    # A field that most rows lack is best left out.
    kept = {name: json.loads(c.most_common(1)[0][0]) for name, c in values.items() if 2 * c.total() >= len(objects)}
    return json.dumps(kept, ensure_ascii=False)


_JSON: Kinds = ("structured",)

METRIC = (
    Metric("field_accuracy", "field accuracy", Group.QUALITY, _field_accuracy, percent, kinds=_JSON, main_for=_JSON),
    Metric("field_precision", "field precision", Group.QUALITY, _precision, percent, kinds=_JSON),
    Metric("field_recall", "field recall", Group.QUALITY, _recall, percent, kinds=_JSON),
    Metric("field_f1", "field F1", Group.QUALITY, _f1, percent, kinds=_JSON),
    Metric("valid_json", "valid JSON", Group.EXACTNESS, _valid, percent, kinds=_JSON),
    Metric("per_field", "each field", Group.QUALITY, per_field, kinds=_JSON, tables=_field_tables),
)
