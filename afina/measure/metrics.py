"""Scores of answers against references, each a function of sums over rows, so that any of them can be resampled.

Means come from the definition, BLEU and chrF from sacrebleu (https://github.com/mjpost/sacrebleu).
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from afina.data.layouts import Kind

Floats = np.ndarray[Any, np.dtype[np.float64]]

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


@dataclass(frozen=True)
class Metric:
    """`stats` has one line a row; `value` makes the score of the sum of any choice of lines and their number."""

    name: str
    stats: Floats
    value: Callable[[Floats, int], float]
    lower_is_better: bool = False

    def score(self) -> float:
        return self.value(self.stats.sum(0), len(self.stats))


def metrics(kind: Kind, answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[Metric]:
    """The metrics that fit `kind`. An answer is scored against the best of its references."""
    if kind == "classification":
        labels = sorted({refs[0].strip() for refs in references})
        return [_mean("accuracy", _exact(answers, references)), _macro_f1(answers, references, labels)]
    if kind == "structured":
        fields = [max(_field_accuracy(a, ref) for ref in refs) for a, refs in zip(answers, references, strict=True)]
        valid = [float(_json(answer) is not None) for answer in answers]
        same = [float(any(_same_json(a, ref) for ref in refs)) for a, refs in zip(answers, references, strict=True)]
        return [_mean("field_accuracy", fields), _mean("exact_match", same), _mean("valid_json", valid)]
    found = [*_translation_metrics(answers, references), _mean("exact_match", _exact(answers, references))]
    return [*_rouge(answers, references), *found] if kind == "summarisation" else found


def per_class(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and count of each label; a ratio without cases is 0."""
    labels = sorted({refs[0].strip() for refs in references})
    table = {}
    for label, (hit, false, missed) in zip(
        labels, _confusion(answers, references, labels).sum(0).reshape(-1, 3), strict=True
    ):
        table[label] = {
            "precision": float(hit / (hit + false)) if hit + false else 0.0,
            "recall": float(hit / (hit + missed)) if hit + missed else 0.0,
            "f1": float(2 * hit / (2 * hit + false + missed)),
            "count": float(hit + missed),
        }
    return table


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


def _exact(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    return [float(a.strip() in {ref.strip() for ref in refs}) for a, refs in zip(answers, references, strict=True)]


def _mean(name: str, values: Sequence[float]) -> Metric:
    return Metric(name, np.array(values, dtype=np.float64)[:, None], lambda total, n: float(total[0] / n))


def _confusion(answers: Sequence[str], references: Sequence[Sequence[str]], labels: list[str]) -> Floats:
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

    return Metric("macro_f1", _confusion(answers, references, labels), value)


def _translation_metrics(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[Metric]:
    from sacrebleu.metrics import BLEU, CHRF

    most = max(map(len, references))
    # sacrebleu wants one list a reference number, with None where a row has fewer.
    streams = [[refs[i] if i < len(refs) else None for refs in references] for i in range(most)]
    found = []
    for name, scorer in (("bleu", BLEU(lowercase=True)), ("bleu_cased", BLEU()), ("chrf", CHRF())):
        # The library's own sums a row, and its own score of a sum: what its `corpus_score` does inside.
        stats = np.array(scorer._extract_corpus_statistics(answers, streams), dtype=np.float64)

        def value(total: Floats, _: int, scorer: Any = scorer) -> float:
            return float(scorer._compute_score_from_stats([int(x) for x in total]).score)

        found.append(Metric(name, stats, value))
    return found


class _Words:
    """Words of any language in small letters; rouge-score's own tokenizer knows English letters only."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())


def _rouge(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[Metric]:
    """ROUGE-1, -2 and -L (F measure, of the best reference, 0 to 100), by rouge-score (https://pypi.org/project/rouge-score)."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(kinds, tokenizer=_Words())
    found = [scorer.score_multi(refs, answer) for answer, refs in zip(answers, references, strict=True)]
    return [
        _mean(name, [100 * scores[kind].fmeasure for scores in found])
        for name, kind in zip(("rouge_1", "rouge_2", "rouge_l"), kinds, strict=True)
    ]


def bits_per_byte(nats: Sequence[float], texts: Sequence[str]) -> Metric:
    """The loss of all texts over their length in UTF-8, which compares models of different tokenizers (Gao et al. 2020,
    https://arxiv.org/abs/2101.00027, section 3.1)."""
    stats = np.array([[n / np.log(2), len(text.encode())] for n, text in zip(nats, texts, strict=True)])
    return Metric("bits_per_byte", stats, lambda total, _: float(total[0] / total[1]), lower_is_better=True)


def byte_frequencies(texts: Sequence[str]) -> Metric:
    """What a model would need that knows only how frequent each byte is in these texts: their entropy of order 0."""
    counts = Counter(byte for text in texts for byte in text.encode())
    cost = {byte: -np.log(n / counts.total()) for byte, n in counts.items()}
    return bits_per_byte([sum(cost[byte] for byte in text.encode()) for text in texts], texts)
