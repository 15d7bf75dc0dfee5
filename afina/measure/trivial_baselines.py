"""Trivial baselines: answers that need no model, and what they score.

A model that does not beat them has learned nothing of use.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from afina.data.layouts import Kind
from afina.measure.metric import Predictions, RowStats
from afina.measure.metrics import main_metric
from afina.measure.metrics.fields import frequent_values
from afina.measure.metrics.likelihood import bits_per_byte
from afina.measure.outputs import EvaluationSet


def trivial_answers(kind: Kind, sources: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """By name, an answer per row: the majority label, the most frequent value of each field, or text from the input.

    The majorities are taken from the references themselves, which no model sees: an upper bound for a constant answer.
    """
    firsts = [refs[0] for refs in references]
    if kind == "classification":
        return {"majority label": [Counter(firsts).most_common(1)[0][0]] * len(firsts)}
    if kind == "structured":
        return {"most frequent values": [frequent_values(firsts)] * len(firsts)}
    first_sentences = [source.split(". ")[0].split("\n")[0] for source in sources]
    return {"copied input": list(sources), "first sentence": first_sentences}


def byte_frequencies(texts: Sequence[str]) -> RowStats:
    """The bits per byte of a model that knows only the frequency of each byte in these texts: their order-0 entropy."""
    counts = Counter(byte for text in texts for byte in text.encode())
    cost = {byte: -np.log(n / counts.total()) for byte, n in counts.items()}
    return bits_per_byte([sum(cost[byte] for byte in text.encode()) for text in texts], texts)


def baseline_scores(eval_set: EvaluationSet) -> dict[str, RowStats]:
    """The main score of each trivial baseline, by name."""
    if eval_set.kind == "text":
        return {"byte frequencies": byte_frequencies([example.completion or "" for example in eval_set.examples])}
    references = [example.references for example in eval_set.examples]
    answers = trivial_answers(eval_set.kind, [example.source for example in eval_set.examples], references)
    main = main_metric(eval_set.kind)
    return {name: main.stats(Predictions(eval_set.kind, texts, references)) for name, texts in answers.items()}
