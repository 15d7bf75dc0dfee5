"""How the texts of two columns hang together, row by row."""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from afina.data.roles.columns import Column

_COMMON = 0.25  # words in more of the rows than this say nothing of one row
_FEWEST = 5  # rows for which chance can be told
_READ = 100  # words of a text that may tell its label


@dataclass(frozen=True)
class Relation:
    """Of two columns, `one` and `other`, what the words of their rows have in common.

    `held` is the fraction of the other's telling words that stand in the one's text of the same row, beyond those that
    stand in the text of another row; `holds` is the same the other way round. `ratio` is the other's length over the
    one's (median), `shared` the fraction of the longer text's words that the shorter has, each as often (median),
    `alike` the correlation of their lengths (logarithms, from -1 to 1), and `vocabulary` the fraction of the other's
    words that the one has in any row.
    """

    held: float
    holds: float
    ratio: float
    shared: float
    alike: float
    vocabulary: float


def relation(one: Column, other: Column) -> Relation:
    pairs = [pair for pair in zip(one.stems, other.stems, strict=True) if all(pair)]
    if not pairs:
        return Relation(0, 0, 1, 0, 0, 0)
    ones, others = [set(a) for a, _ in pairs], [set(b) for _, b in pairs]
    lengths = [(math.log(len(a)), math.log(len(b))) for a, b in pairs]
    vocabulary = set().union(*ones)
    return Relation(
        held=_held(others, ones),
        holds=_held(ones, others),
        ratio=math.exp(statistics.median(b - a for a, b in lengths)),
        shared=statistics.median((Counter(a) & Counter(b)).total() / max(len(a), len(b)) for a, b in pairs),
        alike=_correlation(lengths),
        vocabulary=statistics.mean(len(each & vocabulary) / len(each) for each in others),
    )


def _held(parts: Sequence[set[str]], wholes: Sequence[set[str]]) -> float:
    counts = Counter(itertools.chain.from_iterable(parts))
    most = max(1, _COMMON * len(parts))
    telling = [{stem for stem in part if counts[stem] <= most} for part in parts]
    rows = [i for i, part in enumerate(telling) if part]
    if len(rows) < min(_FEWEST, len(parts)):
        return 0.0
    same = statistics.mean(len(telling[i] & wholes[i]) / len(telling[i]) for i in rows)
    shifted = [(i, j) for i, j in zip(rows, rows[len(rows) // 2 :] + rows[: len(rows) // 2], strict=True) if i != j]
    chance = statistics.mean(len(telling[i] & wholes[j]) / len(telling[i]) for i, j in shifted) if shifted else 0.0
    return max(0.0, same - chance)


def _correlation(pairs: Sequence[tuple[float, float]]) -> float:
    ones, others = zip(*pairs, strict=True)
    if len(pairs) < _FEWEST or len(set(ones)) == 1 or len(set(others)) == 1:
        return 0.0
    return statistics.correlation(ones, others)


def told(text: Column, label: Column) -> float:
    """How well a text's words tell its label: the gain over always saying the most frequent one (0 none, 1 all of it)
    of naive Bayes (with one added to each count), each row left out of the counts that it is told by."""
    rows = [(set(words[:_READ]), each) for words, each in zip(text.stems, label.texts, strict=True) if words and each]
    if len(rows) < 4 * _FEWEST:
        return 0.0
    labels = Counter(each for _, each in rows)
    words = {each: Counter[str]() for each in labels}
    for found, each in rows:
        words[each].update(found)

    def score(found: set[str], each: str, own: bool) -> float:
        counts, n = words[each], labels[each] - own
        return math.log(n + 1e-9) + sum(math.log((counts[word] - own + 1) / (n + 2)) for word in found)

    right = sum(max(labels, key=lambda each: score(found, each, each == own)) == own for found, own in rows)
    usual = labels.most_common(1)[0][1]
    chance = math.sqrt(usual * (1 - usual / len(rows)))  # standard deviation of how many are right by luck
    return max(0.0, (right - usual - chance) / max(1, len(rows) - usual))
