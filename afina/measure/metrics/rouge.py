"""ROUGE-1, -2 and -L by rouge-score (https://pypi.org/project/rouge-score): F measure of the best reference, × 100."""

import re
from functools import partial

from afina.measure.metric import Group, Kinds, Metric, Predictions, RowStats, mean, one_decimal


class _Words:
    """Words of any language in lower case; rouge-score's own tokenizer knows English letters only."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())


def _rouge(variant: str, predictions: Predictions) -> RowStats:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([variant], tokenizer=_Words())
    pairs = zip(predictions.answers, predictions.references, strict=True)
    return mean([100 * scorer.score_multi(refs, answer)[variant].fmeasure for answer, refs in pairs])


_KINDS: Kinds = ("summarisation", "generation", "chat")

METRIC = (
    Metric("rouge_1", "ROUGE-1", Group.QUALITY, partial(_rouge, "rouge1"), one_decimal, kinds=_KINDS),
    Metric("rouge_2", "ROUGE-2", Group.QUALITY, partial(_rouge, "rouge2"), one_decimal, kinds=_KINDS),
    Metric(
        "rouge_l",
        "ROUGE-L",
        Group.QUALITY,
        partial(_rouge, "rougeL"),
        one_decimal,
        kinds=_KINDS,
        main_for=("summarisation",),
    ),
)
