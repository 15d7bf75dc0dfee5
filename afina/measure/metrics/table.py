"""Scores of answers against references, each a function of sums over rows, so that any of them can be resampled.

A score that its rows do not define (a ratio of nothing) is NaN, and is shown as undefined. Scores of free text are in `texts`.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from afina.data.layouts import Kind
from afina.measure.metrics.scores import Floats, Metric, mean, ratio
from afina.measure.metrics.texts import repetition, rouge, sacrebleu

# The metric that decides which of two models is better.
MAIN: dict[Kind, str] = {
    "classification": "accuracy",
    "structured": "field_accuracy",
    "translation": "bleu",
    "summarisation": "rouge_l",
    "chat": "chrf",
    "generation": "bleu",
    "text": "bits_per_byte",
}


def metrics(
    kind: Kind, answers: Sequence[str], references: Sequence[Sequence[str]], only: str | None = None
) -> list[Metric]:
    """The metrics that fit `kind`; where `only` one is asked for, the slow ones among the others are left out.

    An answer is scored against the best of its references.
    """
    if kind == "classification":
        labels = sorted({refs[0].strip() for refs in references})
        return [mean("accuracy", _exact(answers, references)), _macro_f1(answers, references, labels)]
    if kind == "structured":
        fields = [max(_field_accuracy(a, ref) for ref in refs) for a, refs in zip(answers, references, strict=True)]
        valid = [float(_json(answer) is not None) for answer in answers]
        same = [float(any(_same_json(a, ref) for ref in refs)) for a, refs in zip(answers, references, strict=True)]
        means = mean("field_accuracy", fields), mean("exact_match", same), mean("valid_json", valid)
        return [*means, *_field_prf(answers, references)]
    found = sacrebleu(answers, references, ter=kind == "translation" and only is None)
    if kind in ("summarisation", "generation", "chat"):
        found += rouge(answers, references)
    return [*found, mean("exact_match", _exact(answers, references)), repetition(answers)]


def main_metric(kind: Any, answers: Sequence[str], predictions: Sequence[dict[str, Any]]) -> Metric:
    """The main metric of answers to the rows of `predictions`."""
    name = MAIN[kind]
    found = metrics(kind, answers, [tuple(row["references"]) for row in predictions], only=name)
    return next(metric for metric in found if metric.name == name)


def per_class(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and count of each label; a ratio without cases is NaN."""
    labels = sorted({refs[0].strip() for refs in references})
    table = {}
    for label, (hit, false, missed) in zip(
        labels, _hits(answers, references, labels).sum(0).reshape(-1, 3), strict=True
    ):
        table[label] = {
            "precision": float(hit / (hit + false)) if hit + false else math.nan,
            "recall": float(hit / (hit + missed)) if hit + missed else math.nan,
            "f1": float(2 * hit / (2 * hit + false + missed)),
            "count": float(hit + missed),
        }
    return table


def confusion(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """How often each label (a line of `counts`) got which answer (a column); the last column counts answers that are no label."""
    labels = sorted({refs[0].strip() for refs in references})
    index = {label: i for i, label in enumerate(labels)}
    counts = [[0] * (len(labels) + 1) for _ in labels]
    for answer, refs in zip(answers, references, strict=True):
        counts[index[refs[0].strip()]][index.get(answer.strip(), len(labels))] += 1
    return {"labels": labels, "counts": counts}


def per_field(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """For JSON objects: the part of the rows whose answer has each field of the first reference right."""
    right: Counter[str] = Counter()
    count: Counter[str] = Counter()
    for answer, refs in zip(answers, references, strict=True):
        wanted, found = _json(refs[0]), _json(answer)
        for name, value in wanted.items() if isinstance(wanted, dict) else ():
            count[name] += 1
            right[name] += isinstance(found, dict) and name in found and _equal(found[name], value)
    return {name: right[name] / n for name, n in count.items()}


def trivial_answers(kind: Kind, sources: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """What needs no model: the majority label, the most frequent value of each field, the input or its first sentence.

    The majorities are taken from the references themselves, which no model sees: an upper bound for a constant answer.
    """
    firsts = [refs[0] for refs in references]
    if kind == "classification":
        return {"majority label": [Counter(firsts).most_common(1)[0][0]] * len(firsts)}
    if kind == "structured":
        return {"most frequent values": [_frequent_values(firsts)] * len(firsts)}
    first_sentences = [source.split(". ")[0].split("\n")[0] for source in sources]
    return {"copied input": list(sources), "first sentence": first_sentences}


def _frequent_values(references: Sequence[str]) -> str:
    parsed = [_json(text) for text in references]
    if not all(isinstance(value, dict) for value in parsed):
        return Counter(references).most_common(1)[0][0]
    values: dict[str, Counter[str]] = {}
    for row in parsed:
        for name, value in row.items():
            values.setdefault(name, Counter())[json.dumps(value, sort_keys=True, ensure_ascii=False)] += 1
    # A field that most rows lack is best left out.
    kept = {name: json.loads(c.most_common(1)[0][0]) for name, c in values.items() if 2 * c.total() >= len(parsed)}
    return json.dumps(kept, ensure_ascii=False)


def _json(text: str) -> Any:
    """The parsed text, or None where it is not JSON (or is null)."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _equal(a: Any, b: Any) -> bool:
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def _same_json(answer: str, reference: str) -> bool:
    found = _json(answer)
    return found is not None and _equal(found, _json(reference))


def _field_accuracy(answer: str, reference: str) -> float:
    """Fields that agree over fields that either has; an answer that is not JSON of the reference's kind has none right."""
    wanted, found = _json(reference), _json(answer)
    if not isinstance(wanted, dict) or not isinstance(found, dict):
        return float(_same_json(answer, reference))
    names = wanted.keys() | found.keys()
    if not names:
        return 1.0
    return sum(n in wanted and n in found and _equal(wanted[n], found[n]) for n in names) / len(names)


def _field_prf(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[Metric]:
    """Precision, recall and F1 of all fields together (micro): a field is right where its value is the first reference's."""
    counts = []
    for answer, refs in zip(answers, references, strict=True):
        wanted, found = (value if isinstance(value, dict) else {} for value in (_json(refs[0]), _json(answer)))
        right = sum(name in wanted and _equal(wanted[name], value) for name, value in found.items())
        counts.append((right, len(found), len(wanted)))
    stats = np.array(counts, dtype=np.float64)
    return [
        Metric("field_precision", stats, lambda total, _: ratio(total[0], total[1])),
        Metric("field_recall", stats, lambda total, _: ratio(total[0], total[2])),
        Metric("field_f1", stats, lambda total, _: ratio(2 * total[0], total[1] + total[2])),
    ]


def _exact(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    return [float(a.strip() in {ref.strip() for ref in refs}) for a, refs in zip(answers, references, strict=True)]


def _hits(answers: Sequence[str], references: Sequence[Sequence[str]], labels: list[str]) -> Floats:
    """One line a row with (hit, false, missed) for each label."""
    index = {label: i for i, label in enumerate(labels)}
    table = np.zeros((len(answers), len(labels), 3))
    for row, (answer, refs) in enumerate(zip(answers, references, strict=True)):
        given, wanted = answer.strip(), refs[0].strip()
        if given == wanted:
            table[row, index[wanted], 0] = 1
        else:
            table[row, index[wanted], 2] = 1
            if given in index:
                table[row, index[given], 1] = 1
    return table.reshape(len(answers), -1)


def _macro_f1(answers: Sequence[str], references: Sequence[Sequence[str]], labels: list[str]) -> Metric:
    """The mean over the references' labels of 2·hit / (2·hit + false + missed)."""

    def value(total: Floats, _: int) -> float:
        hit, false, missed = total.reshape(-1, 3).T
        there = hit + missed > 0  # a resample may lack a label
        return float(np.mean((2 * hit / np.maximum(2 * hit + false + missed, 1))[there]))

    return Metric("macro_f1", _hits(answers, references, labels), value)
