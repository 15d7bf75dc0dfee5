"""Every score against its library or closed form; intervals against simulation; the page."""

import json

import numpy as np
import pytest

from afina.data.kinds import Answers
from afina.data.layouts import Layout
from afina.measure.intervals import paired_difference
from afina.measure.metrics import metrics, per_class, per_field, trivial_answers
from afina.measure.scores import Metric

TEXT_ANSWERS = ["The cat sat on the mat.", "there is a dog", "Completely wrong", "a b c d e"]
TEXT_REFERENCES = [
    ("the cat sat on a mat .", "A cat is on the mat."),
    ("There is a dog here",),
    ("right answer", "x"),
    ("a b c d e",),
]


def scores(kind, answers, references) -> dict[str, float]:
    return {m.name: m.score() for m in metrics(kind, answers, references)}


def test_bleu_and_chrf_are_sacrebleus() -> None:
    from sacrebleu import BLEU, CHRF

    streams = [[refs[i] if i < len(refs) else None for refs in TEXT_REFERENCES] for i in range(2)]
    found = scores("text", TEXT_ANSWERS, TEXT_REFERENCES)
    assert found["bleu"] == pytest.approx(BLEU(lowercase=True).corpus_score(TEXT_ANSWERS, streams).score)
    assert found["bleu_cased"] == pytest.approx(BLEU().corpus_score(TEXT_ANSWERS, streams).score)
    assert found["chrf"] == pytest.approx(CHRF().corpus_score(TEXT_ANSWERS, streams).score)
    assert found["exact_match"] == 0.25


def test_classification_is_scikit_learns() -> None:
    from sklearn.metrics import accuracy_score, classification_report, f1_score

    rng = np.random.default_rng(0)
    wanted = rng.choice(["pos", "neg", "neu"], 200).tolist()
    given = [w if rng.random() < 0.6 else rng.choice(["pos", "neg", "neu", "banana", ""]) for w in wanted]
    found = scores("classification", given, [(w,) for w in wanted])
    labels = sorted(set(wanted))
    assert found["accuracy"] == pytest.approx(accuracy_score(wanted, given))
    assert found["macro_f1"] == pytest.approx(f1_score(wanted, given, labels=labels, average="macro", zero_division=0))
    report = classification_report(wanted, given, labels=labels, output_dict=True, zero_division=0)
    for label, row in per_class(given, [(w,) for w in wanted]).items():
        assert row["f1"] == pytest.approx(report[label]["f1-score"])
        assert row["precision"] == pytest.approx(report[label]["precision"])
        assert row["recall"] == pytest.approx(report[label]["recall"])
        assert row["count"] == report[label]["support"]


def test_structured() -> None:
    references = [('{"a": 1, "b": "x"}',)] * 5 + [("{}",)]
    answers = ['{"b": "x", "a": 1}', '{"a": 1, "b": "y"}', '{"a": 1, "b": "x", "c": 0}', "[1]", "not json", "{}"]
    found = scores("structured", answers, references)
    assert found["field_accuracy"] == pytest.approx((1 + 1 / 2 + 2 / 3 + 0 + 0 + 1) / 6)
    assert found["exact_match"] == pytest.approx(2 / 6)
    assert found["valid_json"] == pytest.approx(5 / 6)
    assert per_field(answers, references) == {"a": 3 / 5, "b": 2 / 5}
    # True is not 1, and null is a value.
    assert scores("structured", ['{"a": true, "b": null}'], [('{"a": 1, "b": null}',)])["field_accuracy"] == 0.5


def test_kinds_are_inferred() -> None:
    def kind(answers: list[str], layout: str | None = None) -> str:
        return Answers(answers).kind(Layout("", kind=layout) if layout else None)

    assert kind(['{"a": 1}', "[]"] * 5) == kind(['{"a": 1}'], "chat") == "structured"
    assert kind(["1", "2", "3"] * 20) == kind(["pos", "neg"] * 20) == "classification"
    sentences = [f"sentence number {i}" for i in range(40)]
    assert kind(sentences) == "generation"
    assert kind(sentences, "translation") == "translation"


def test_classes_are_few_and_repeated_answers() -> None:
    found = Answers()
    for i in range(5000):
        found.add(f"{i % 1000}")
    assert found.classes == sorted(map(str, range(1000)))
    for i in range(3000):
        found.add(f"other {i}")
    assert found.classes == []


def test_trivial_answers() -> None:
    assert trivial_answers("classification", ["q"] * 3, [("a",), ("b",), ("b",)]) == {"majority label": ["b"] * 3}
    found = trivial_answers("structured", ["q"] * 3, [('{"a": 1}',), ('{"a": 1, "b": 2}',), ('{"a": 2}',)])
    assert [json.loads(x) for x in found["most frequent values"]] == [{"a": 1}] * 3
    found = trivial_answers("text", ["One. Two.", "Three"], [("x",), ("y",)])
    assert found == {"copied input": ["One. Two.", "Three"], "first sentence": ["One", "Three"]}


def mean_metric(values) -> Metric:
    return Metric("m", np.array(values, dtype=float)[:, None], lambda total, n: float(total[0] / n))


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(120):
        shared = rng.normal(size=80)
        a, b = shared + rng.normal(size=80), shared + rng.normal(0.3, 1, size=80)
        d = paired_difference(mean_metric(a), mean_metric(b), seed=trial)
        covered += d.low <= 0.3 <= d.high
    assert 0.89 <= covered / 120 <= 0.99


def test_perfect_labels_stay_perfect_in_every_resample() -> None:
    wanted = [("a",)] * 11 + [("b",)]
    good = metrics("classification", [w for (w,) in wanted], wanted)[1]
    bad = metrics("classification", ["c"] * 12, wanted)[1]
    d = paired_difference(bad, good)
    assert (d.low, d.high) == (1.0, 1.0)


def test_verdicts() -> None:
    assert paired_difference(mean_metric([0.0] * 9), mean_metric([1.0] * 9)).verdict == "too few rows to tell"
    low, high = mean_metric([0.0, 0.1] * 30), mean_metric([1.0, 0.9] * 30)
    assert paired_difference(low, high).verdict == "better"
    assert paired_difference(high, low).verdict == "worse"
    assert paired_difference(low, low).verdict == "not distinguishable"
    same = metrics("text", TEXT_ANSWERS * 3, TEXT_REFERENCES * 3)[0]
    assert paired_difference(same, same).value == 0
