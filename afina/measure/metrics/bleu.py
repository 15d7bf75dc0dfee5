"""BLEU, chrF and TER, by sacrebleu (https://github.com/mjpost/sacrebleu), with its signatures."""

from typing import Any

import numpy as np

from afina.measure.metric import FREE_TEXT, Floats, Group, Metric, Predictions, RowStats, one_decimal


def _corpus_stats(predictions: Predictions, scorer: Any) -> RowStats:
    """The corpus score of one of sacrebleu's metrics."""
    most = max(map(len, predictions.references))
    # sacrebleu wants a list for each reference number, with None where a row has fewer.
    streams = [[refs[i] if i < len(refs) else None for refs in predictions.references] for i in range(most)]
    # The library's own sums per row, and its own score of a sum: what its `corpus_score` does inside.
    stats = np.array(scorer._extract_corpus_statistics(predictions.answers, streams), dtype=np.float64)

    def value(total: Floats, _: int) -> float:
        return float(scorer._compute_score_from_stats([int(x) if x == int(x) else x for x in total]).score)

    return RowStats(stats, value, str(scorer.get_signature()))


def _bleu(predictions: Predictions) -> RowStats:
    from sacrebleu.metrics import BLEU

    return _corpus_stats(predictions, BLEU(lowercase=True, force=True))


def _bleu_cased(predictions: Predictions) -> RowStats:
    from sacrebleu.metrics import BLEU

    return _corpus_stats(predictions, BLEU(force=True))


def _chrf(predictions: Predictions) -> RowStats:
    from sacrebleu.metrics import CHRF

    return _corpus_stats(predictions, CHRF())


def _ter(predictions: Predictions) -> RowStats:
    """Takes seconds per hundred rows, and is computed for translations only."""
    from sacrebleu.metrics import TER

    return _corpus_stats(predictions, TER())


METRIC = (
    Metric(
        "bleu",
        "BLEU (lower-cased)",
        Group.QUALITY,
        _bleu,
        one_decimal,
        kinds=FREE_TEXT,
        main_for=("translation", "generation"),
    ),
    Metric("bleu_cased", "BLEU (cased)", Group.QUALITY, _bleu_cased, one_decimal, kinds=FREE_TEXT),
    Metric("chrf", "chrF", Group.QUALITY, _chrf, one_decimal, kinds=FREE_TEXT, main_for=("chat",)),
    Metric(
        "ter", "TER (lower is better)", Group.QUALITY, _ter, one_decimal, lower_is_better=True, kinds=("translation",)
    ),
)
