"""Every score against its library or closed form; intervals against simulation; the page."""

import json

import numpy as np
import pytest

from afina.data.answers import AnswerStatistics
from afina.data.layouts import Layout
from afina.measure.intervals import interval, paired_difference
from afina.measure.metric import Predictions, RowStats
from afina.measure.metrics import METRICS, metrics_for
from afina.measure.metrics.classification import confusion, per_class
from afina.measure.metrics.fields import per_field
from afina.measure.metrics.variety import distinct, repetition
from afina.measure.pages.summary import number, verdict
from afina.measure.trivial_baselines import trivial_answers

TEXT_ANSWERS = ["The cat sat on the mat.", "there is a dog", "Completely wrong", "a b c d e"]
TEXT_REFERENCES = [
    ("the cat sat on a mat .", "A cat is on the mat."),
    ("There is a dog here",),
    ("right answer", "x"),
    ("a b c d e",),
]


LABELLED = "classification"


def metrics(kind, answers, references) -> dict[str, RowStats]:
    """What can be computed from answers and references alone."""
    predictions = Predictions(kind, answers, references)
    fitting = [m for m in metrics_for(kind) if m.group.name in ("QUALITY", "EXACTNESS") or m.name == "repetition"]
    computed = {m.name: m.compute(predictions) for m in fitting}
    return {name: each for name, each in computed.items() if isinstance(each, RowStats)}


def scores(kind, answers, references) -> dict[str, float]:
    return {name: each.score() for name, each in metrics(kind, answers, references).items()}


def test_bleu_and_chrf_are_sacrebleus() -> None:
    from sacrebleu import BLEU, CHRF

    streams = [[refs[i] if i < len(refs) else None for refs in TEXT_REFERENCES] for i in range(2)]
    found = scores("generation", TEXT_ANSWERS, TEXT_REFERENCES)
    assert found["bleu"] == pytest.approx(BLEU(lowercase=True).corpus_score(TEXT_ANSWERS, streams).score)
    assert found["bleu_cased"] == pytest.approx(BLEU().corpus_score(TEXT_ANSWERS, streams).score)
    assert found["chrf"] == pytest.approx(CHRF().corpus_score(TEXT_ANSWERS, streams).score)
    assert found["exact_match"] == 0.25


def test_classification_is_scikit_learns() -> None:
    from sklearn.metrics import accuracy_score, classification_report, confusion_matrix, f1_score

    rng = np.random.default_rng(0)
    wanted = rng.choice(["pos", "neg", "neu"], 200).tolist()
    given = [w if rng.random() < 0.6 else rng.choice(["pos", "neg", "neu", "banana", ""]) for w in wanted]
    found = scores("classification", given, [(w,) for w in wanted])
    labels = sorted(set(wanted))
    assert found["accuracy"] == pytest.approx(accuracy_score(wanted, given))
    assert found["macro_f1"] == pytest.approx(f1_score(wanted, given, labels=labels, average="macro", zero_division=0))
    report = classification_report(wanted, given, labels=labels, output_dict=True, zero_division=np.nan)
    predictions = Predictions(LABELLED, given, [(w,) for w in wanted])
    matrix = confusion(predictions)
    assert matrix["labels"] == labels
    assert [row[:3] for row in matrix["counts"]] == confusion_matrix(wanted, given, labels=labels).tolist()
    assert sum(map(sum, matrix["counts"])) == 200
    for label, row in per_class(predictions).items():
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
    assert per_field(Predictions("structured", answers, references)) == {"a": 3 / 5, "b": 2 / 5}
    # True is not 1, and null is a value.
    assert scores("structured", ['{"a": true, "b": null}'], [('{"a": 1, "b": null}',)])["field_accuracy"] == 0.5


def test_kinds_are_inferred() -> None:
    def kind(answers: list[str], layout: str | None = None) -> str:
        return AnswerStatistics(answers).kind(Layout("", kind=layout) if layout else None)

    assert kind(['{"a": 1}', "[]"] * 5) == kind(['{"a": 1}'], "chat") == "structured"
    assert kind(["1", "2", "3"] * 20) == kind(["pos", "neg"] * 20) == "classification"
    sentences = [f"sentence number {i}" for i in range(40)]
    assert kind(sentences) == "generation"
    assert kind(sentences, "translation") == "translation"


def test_classes_are_few_and_repeated_answers() -> None:
    found = AnswerStatistics()
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
    found = trivial_answers("generation", ["One. Two.", "Three"], [("x",), ("y",)])
    assert found == {"copied input": ["One. Two.", "Three"], "first sentence": ["One", "Three"]}


def mean_metric(values) -> RowStats:
    return RowStats(np.array(values, dtype=float)[:, None], lambda total, n: float(total[0] / n))


@pytest.mark.parametrize(("rows", "shape"), [(60, "normal"), (40, "yes or no"), (16, "normal")])
def test_intervals_cover_the_truth_as_often_as_they_say(rows: int, shape: str, monkeypatch) -> None:
    monkeypatch.setattr("afina.measure.intervals.RESAMPLES", 400)
    rng = np.random.default_rng(1)
    covered, cases = 0, 400
    for case in range(cases):
        if shape == "normal":
            shared = rng.normal(size=rows)
            a, b, truth = shared + rng.normal(size=rows), shared + rng.normal(0.3, 1, size=rows), 0.3
        else:
            a, b, truth = rng.random(rows) < 0.4, rng.random(rows) < 0.7, 0.3
        d = paired_difference(mean_metric(a), mean_metric(b), seed=case)
        covered += d.low <= truth <= d.high
    assert 0.93 <= covered / cases <= 0.97


def test_what_is_undefined_says_so() -> None:
    silent = metrics("chat", ["", ""], [("a b",), ("c",)])
    assert np.isnan(silent["repetition"].score())
    assert np.isnan(distinct(["", ""], 1))
    empty = metrics("structured", ["{}"] * 12, [("{}",)] * 12)
    precision = empty["field_precision"]
    assert np.isnan(precision.score())
    assert np.isnan(interval(precision)[0])
    assert paired_difference(precision, precision).verdict == "undefined"
    assert number("field_precision", None) == "undefined"
    assert all(np.isnan(interval(mean_metric([1.0]))))
    row = {"value": None, "low": None, "high": None, "rows": 12, "verdict": "undefined"}
    evaluation = {"main_metric": "accuracy", "difference": {"accuracy": row}, "over_trivial": row}
    assert "undefined on 12 rows" in verdict(evaluation)
    found = per_class(Predictions(LABELLED, ["b", "b"], [("a",), ("b",)]))
    assert np.isnan(found["a"]["precision"])  # no answer was "a"


def test_fields_are_counted_as_scikit_learn_counts() -> None:
    from sklearn.metrics import precision_recall_fscore_support

    rng = np.random.default_rng(0)
    rows = [[{k: int(rng.integers(3)) for k in "abc" if rng.random() < 0.7} for _ in range(2)] for _ in range(60)]
    found = scores("structured", [json.dumps(given) for _, given in rows], [(json.dumps(w),) for w, _ in rows])
    pairs = sorted({(i, k, v) for i, (w, g) in enumerate(rows) for k, v in [*w.items(), *g.items()]})
    wanted = [rows[i][0].get(k) == v for i, k, v in pairs]
    given = [rows[i][1].get(k) == v for i, k, v in pairs]
    p, r, f, _ = precision_recall_fscore_support(wanted, given, average="binary")
    assert (found["field_precision"], found["field_recall"], found["field_f1"]) == pytest.approx((p, r, f))


def test_ter_is_sacrebleus() -> None:
    from sacrebleu import TER

    streams = [[refs[i] if i < len(refs) else None for refs in TEXT_REFERENCES] for i in range(2)]
    found = metrics("translation", TEXT_ANSWERS, TEXT_REFERENCES)
    assert found["ter"].score() == pytest.approx(TER().corpus_score(TEXT_ANSWERS, streams).score)
    assert METRICS["ter"].lower_is_better
    assert found["ter"].signature == "nrefs:var|case:lc|tok:tercom|norm:no|punct:yes|asian:no|version:2.6.0"
    assert found["bleu"].signature.startswith("nrefs:var|case:lc|eff:no|tok:13a|smooth:exp")


def test_rouge_is_rouge_scores() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    found = scores("summarisation", TEXT_ANSWERS, TEXT_REFERENCES)
    twin = RougeScorer(["rouge1", "rouge2", "rougeL"])  # its own tokenizer: these texts are English
    all_ = [twin.score_multi(refs, answer) for answer, refs in zip(TEXT_ANSWERS, TEXT_REFERENCES, strict=True)]
    for name, kind in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        assert found[name] == pytest.approx(100 * np.mean([each[kind].fmeasure for each in all_]))


def test_variety_and_repetition_by_nltks_runs() -> None:
    from nltk.util import ngrams

    answers = ["a b c d a b c d", "x y z", "one two three four five"]
    pairs = [run for answer in answers for run in ngrams(answer.split(), 2)]
    assert distinct(answers, 2) == len(set(pairs)) / len(pairs)
    assert repetition(answers).score() == pytest.approx(1 / (5 + 0 + 2))


def test_perfect_labels_stay_perfect_in_every_resample() -> None:
    wanted = [("a",)] * 11 + [("b",)]
    good = metrics("classification", [w for (w,) in wanted], wanted)["macro_f1"]
    bad = metrics("classification", ["c"] * 12, wanted)["macro_f1"]
    d = paired_difference(bad, good)
    assert (d.low, d.high) == (1.0, 1.0)


def test_verdicts() -> None:
    assert paired_difference(mean_metric([0.0] * 9), mean_metric([1.0] * 9)).verdict == "too few rows to tell"
    low, high = mean_metric([0.0, 0.1] * 30), mean_metric([1.0, 0.9] * 30)
    assert paired_difference(low, high).verdict == "better"
    assert paired_difference(high, low).verdict == "worse"
    assert paired_difference(low, low).verdict == "not distinguishable"
    same = metrics("generation", TEXT_ANSWERS * 3, TEXT_REFERENCES * 3)["bleu"]
    assert paired_difference(same, same).value == 0


def test_no_row_right_is_no_certainty() -> None:
    """The bounds of Clopper and Pearson, from the Beta distribution."""
    from scipy.stats import beta

    for n in (9, 640):
        low, high = interval(mean_metric([0.0] * n))
        assert low == 0
        assert high == pytest.approx(beta.ppf(0.975, 1, n))
        assert interval(mean_metric([1.0] * n)) == (pytest.approx(beta.ppf(0.025, n, 1)), 1.0)


@pytest.mark.parametrize("each", [1.0, 0.0, -1.0])
def test_rows_that_all_differ_alike_are_no_certainty(each: float) -> None:
    """The others' share has Clopper and Pearson's bound, and each of them differs by −1 or +1."""
    from scipy.stats import beta

    before, after = [float(each < 0)] * 12, [float(each > 0)] * 12
    d = paired_difference(mean_metric(before), mean_metric(after))
    others = beta.ppf(0.975, 1, 12)
    assert d.value == each
    assert d.low == pytest.approx(max(each * (1 - others) - others, -1))
    assert d.high == pytest.approx(min(each * (1 - others) + others, 1))
    assert d.verdict == {1.0: "better", 0.0: "not distinguishable", -1.0: "worse"}[each]
