"""Accuracy and macro F1 of labels; precision, recall and F1 per label; the confusion matrix."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from afina.measure.metric import Floats, Group, Kinds, Metric, Predictions, RowStats, Table, mean, percent

_MATRIX = 12  # labels at most that are shown as a matrix
_MISTAKES = 12  # the most frequent ones that are listed instead


def _accuracy(predictions: Predictions) -> RowStats:
    pairs = zip(predictions.answers, predictions.references, strict=True)
    return mean([float(a.strip() in {ref.strip() for ref in refs}) for a, refs in pairs])


def _counts(predictions: Predictions) -> Floats:
    """A line per row with (true positive, false positive, false negative) for each label."""
    labels = predictions.labels
    index = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(predictions.answers), len(labels), 3))
    for row, (answer, refs) in enumerate(zip(predictions.answers, predictions.references, strict=True)):
        given, wanted = answer.strip(), refs[0].strip()
        if given == wanted:
            counts[row, index[wanted], 0] = 1
        else:
            counts[row, index[wanted], 2] = 1
            if given in index:
                counts[row, index[given], 1] = 1
    return counts.reshape(len(predictions.answers), -1)


def _macro_f1(predictions: Predictions) -> RowStats:
    """The mean over the references' labels of 2·TP / (2·TP + FP + FN)."""

    def value(total: Floats, _: int) -> float:
        hit, false, missed = total.reshape(-1, 3).T
        present = hit + missed > 0  # a resample may lack a label
        return float(np.mean((2 * hit / np.maximum(2 * hit + false + missed, 1))[present]))

    return RowStats(_counts(predictions), value)


def per_class(predictions: Predictions) -> dict[str, Any]:
    """Precision, recall, F1 and count of each label; a ratio without cases is NaN."""
    totals = _counts(predictions).sum(0).reshape(-1, 3)
    return {
        label: {
            "precision": float(hit / (hit + false)) if hit + false else math.nan,
            "recall": float(hit / (hit + missed)) if hit + missed else math.nan,
            "f1": float(2 * hit / (2 * hit + false + missed)),
            "count": float(hit + missed),
        }
        for label, (hit, false, missed) in zip(predictions.labels, totals, strict=True)
    }


def _class_tables(base: dict[str, Any], adapted: dict[str, Any]) -> Iterator[Table]:
    lines = []
    for (label, scores), before in zip(adapted.items(), base.values(), strict=True):
        shares = (before["f1"], scores["f1"], scores["precision"], scores["recall"])
        cells = ["undefined" if share is None else percent(share) for share in shares]
        lines.append((label, [f"{scores['count']:.0f}", *cells]))
    yield "Each label", ["count", "base F1", "adapted F1", "adapted precision", "adapted recall"], lines


def confusion(predictions: Predictions) -> dict[str, Any]:
    """How often each label (a line of `counts`) got which answer (a column); the last column is any other answer."""
    labels = predictions.labels
    index = {label: i for i, label in enumerate(labels)}
    counts = [[0] * (len(labels) + 1) for _ in labels]
    for answer, refs in zip(predictions.answers, predictions.references, strict=True):
        counts[index[refs[0].strip()]][index.get(answer.strip(), len(labels))] += 1
    return {"labels": labels, "counts": counts}


def _confusion_tables(base: dict[str, Any], adapted: dict[str, Any]) -> Iterator[Table]:
    """The matrix of a few labels, or the most frequent mistakes among many; of the adapted model."""
    labels, counts = adapted["labels"], adapted["counts"]
    columns = [*labels, "other"]
    if len(labels) <= _MATRIX:
        lines = [(f"is {name}", [str(n) for n in line]) for name, line in zip(labels, counts, strict=True)]
        yield "Confusion matrix (adapted model; rows are the right labels)", columns, lines
        return
    mistakes = [
        (n, f"{right} taken for {answer}")
        for right, line in zip(labels, counts, strict=True)
        for answer, n in zip(columns, line, strict=True)
        if right != answer and n
    ]
    most = sorted(mistakes, key=lambda each: -each[0])[:_MISTAKES]
    yield "Most frequent mistakes (adapted model)", ["rows"], [(text, [str(n)]) for n, text in most]


_LABELS: Kinds = ("classification",)

METRIC = (
    Metric("accuracy", "accuracy", Group.QUALITY, _accuracy, percent, kinds=_LABELS, main_for=_LABELS),
    Metric("macro_f1", "macro F1", Group.QUALITY, _macro_f1, percent, kinds=_LABELS),
    Metric("per_class", "each label", Group.QUALITY, per_class, kinds=_LABELS, tables=_class_tables),
    Metric("confusion", "confusion", Group.QUALITY, confusion, kinds=_LABELS, tables=_confusion_tables),
)
