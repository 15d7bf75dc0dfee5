"""Scores of free text: BLEU, chrF and TER from sacrebleu, ROUGE from rouge-score, repetition and variety, bits a byte."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from afina.measure.metrics.scores import Floats, Metric, mean, rate, ratio


def sacrebleu(answers: Sequence[str], references: Sequence[Sequence[str]], ter: bool = False) -> list[Metric]:
    """Corpus scores of sacrebleu (https://github.com/mjpost/sacrebleu), with its signatures. TER takes seconds a hundred rows."""
    from sacrebleu.metrics import BLEU, CHRF, TER

    most = max(map(len, references))
    # sacrebleu wants one list a reference number, with None where a row has fewer.
    streams = [[refs[i] if i < len(refs) else None for refs in references] for i in range(most)]
    scorers: list[tuple[str, Any]] = [
        ("bleu", BLEU(lowercase=True, force=True)), ("bleu_cased", BLEU(force=True)), ("chrf", CHRF()),
    ]  # fmt: skip
    if ter:
        scorers.append(("ter", TER()))
    found = []
    for name, scorer in scorers:
        # The library's own sums a row, and its own score of a sum: what its `corpus_score` does inside.
        stats = np.array(scorer._extract_corpus_statistics(answers, streams), dtype=np.float64)

        def value(total: Floats, _: int, scorer: Any = scorer) -> float:
            return float(scorer._compute_score_from_stats([int(x) if x == int(x) else x for x in total]).score)

        found.append(Metric(name, stats, value, name == "ter", str(scorer.get_signature())))
    return found


class _Words:
    """Words of any language in small letters; rouge-score's own tokenizer knows English letters only."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())


def rouge(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[Metric]:
    """ROUGE-1, -2 and -L (F measure, of the best reference, 0 to 100), by rouge-score (https://pypi.org/project/rouge-score)."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(kinds, tokenizer=_Words())
    found = [scorer.score_multi(refs, answer) for answer, refs in zip(answers, references, strict=True)]
    return [
        mean(name, [100 * scores[kind].fmeasure for scores in found])
        for name, kind in zip(("rouge_1", "rouge_2", "rouge_l"), kinds, strict=True)
    ]


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def repetition(answers: Sequence[str]) -> Metric:
    """The part of the runs of four words that were there before in the same answer (seq-rep-4 of Welleck et al. 2020,
    https://arxiv.org/abs/1908.04319, section 3); undefined where no answer has four words."""
    runs = [_grams(answer, 4) for answer in answers]
    return rate("repetition", [(len(each) - len(set(each)), len(each)) for each in runs], lower_is_better=True)


def distinct(answers: Sequence[str], n: int) -> float:
    """Different runs of `n` words over all runs, of all answers together (Li et al. 2016, https://arxiv.org/abs/1510.03055,
    section 5.2). It falls with the number of rows, so that no interval can be formed of resampled ones."""
    runs = [run for answer in answers for run in _grams(answer, n)]
    return ratio(len(set(runs)), len(runs))


def bits_per_byte(nats: Sequence[float], texts: Sequence[str]) -> Metric:
    """The loss of all texts over their length in UTF-8, which compares models of different tokenizers (Gao et al. 2020,
    https://arxiv.org/abs/2101.00027, section 3.1)."""
    pairs = [(n / np.log(2), len(text.encode())) for n, text in zip(nats, texts, strict=True)]
    return rate("bits_per_byte", pairs, lower_is_better=True)


def loss_per_token(nats: Sequence[float], tokens: Sequence[int]) -> Metric:
    return rate("loss", list(zip(nats, tokens, strict=True)), lower_is_better=True)


def byte_frequencies(texts: Sequence[str]) -> Metric:
    """What a model would need that knows only how frequent each byte is in these texts: their entropy of order 0."""
    counts = Counter(byte for text in texts for byte in text.encode())
    cost = {byte: -np.log(n / counts.total()) for byte, n in counts.items()}
    return bits_per_byte([sum(cost[byte] for byte in text.encode()) for text in texts], texts)
