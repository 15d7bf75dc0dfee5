"""Classification: a few short values that recur, told by a text or by two that are compared."""

from collections.abc import Iterator

from afina.data.layouts import language
from afina.data.roles.columns import Column
from afina.data.roles.table import Reading, Table
from afina.data.roles.tasks import Task

_TOLD = 0.2  # a label that one text tells at least so well is of that text alone
_OF_PAIRS = 5  # labels of how two texts compare, at most
_COMPARED = {
    "0", "1", "2", "0.0", "1.0", "-1", "true", "false", "yes", "no", "y", "n", "t", "f", "entailment", "neutral",
    "contradiction", "not_entailment", "non-entailment", "entailed", "contradicts", "same", "different", "similar",
    "duplicate", "equivalent", "paraphrase", "match", "mismatch", "relevant", "irrelevant", "sim", "não", "nao", "sí",
    "oui", "non", "ja", "nein",
}  # fmt: skip
_SHARED = 0.1  # of the words of texts that are compared, beyond chance
_LENGTHS = 0.25  # of the longer, at least
_SENTENCE = 8  # words: a shorter text may be a mere name
_FLAGS = 3  # columns of the same values say each a part of what there is to say of a row
_CONFLICTS = 0.3  # of the rows have the text of a row with another label: it cannot be told


def _readings(table: Table) -> Iterator[Reading]:
    texts = [column for column in table.of("text") if column.words >= 2 and column.meaning != "nothing to learn"]
    labels = [label for label in table.of("label") if label.meaning != "nothing to learn"]
    for label in labels:
        for text in texts:
            if text.words <= label.words:
                continue
            found = Reading(_inputs(table, text, label), label)
            found.add(0.75, f"it has {len(label.distinct)} short values that recur")
            told = table.told(text, label)
            found.add(0.6 * told, f"the words of {text.name!r} tell it")
            found.names(label=1.0, answer=0.8, property=-0.3, title=-0.3)
            found.add(-0.6 if _conflicts(text, label) > _CONFLICTS else 0.0)
            found.add(0.2 * min(1.0, text.words / _SENTENCE))
            found.add(
                0.2 * (len(labels) == 1) + 0.2 * (len(texts) == 1), "no other column is like it" * (len(labels) == 1)
            )
            if told < _TOLD and _alike(table, found.inputs):
                found.add(
                    0.7 if {*map(str.lower, label.distinct)} <= _COMPARED else 0.4, "it may say how two texts compare"
                )
            elif not told and label.meaning != "label" and len(table.columns) > 2:
                found.add(-0.3)  # a detail of the record, like others
            found.add(-0.7 if sum(set(each.distinct) == set(label.distinct) for each in labels) >= _FLAGS else 0.0)
            found.add(-1.2 if _has_answer(table, found.inputs) else 0.0)
            if all(language(value) for value in label.distinct):
                found.add(-0.5)  # the language that a row is in, rarely what is asked
            yield found


def _has_answer(table: Table, inputs: list[Column]) -> bool:
    """Whether beside them there is a text that by its name was written to be learned."""
    return any(
        each.meaning in ("answer", "summary") and not any(each is one or table.is_copy(each, one) for one in inputs)
        for each in table.sentences
    )


def _alike(table: Table, inputs: list[Column]) -> bool:
    """Whether there are two that share words, neither much longer than the other."""
    if len(inputs) != 2:
        return False
    pair, (one, other) = table.relation(*inputs), inputs
    if abs(one.asks - other.asks) > 0.5 and not (one.meaning and other.meaning):  # a question and its answer
        return False
    return pair.held > _SHARED and _LENGTHS < pair.ratio < 1 / _LENGTHS


def _conflicts(text: Column, label: Column) -> float:
    """The fraction of rows whose text has another label elsewhere, too."""
    rows = list(zip(text.texts, label.texts, strict=True))
    labels: dict[str, set[str]] = {}
    for asked, answer in rows:
        labels.setdefault(asked, set()).add(answer)
    return sum(len(labels[asked]) > 1 for asked, _ in rows) / len(rows)


def _inputs(table: Table, text: Column, label: Column) -> list[Column]:
    """The text, with the other where two are compared, or with its title."""
    siblings = table.siblings(text)
    if len(siblings) > 1:
        return siblings
    others = [each for each in table.sentences if each is not text and each.meaning not in ("answer", "summary")]
    titles = [each for each in others if each.meaning == "title" and text.meaning != "title"]
    compared = [
        each
        for each in others
        if each.meaning in ("text", "question", "context", None)
        and (each.meaning is None) == (text.meaning is None)
        and len(label.distinct) <= _OF_PAIRS
        and max(table.told(text, label), table.told(each, label)) < _TOLD
        and text.meaning not in ("answer", "summary")
        and not table.is_copy(text, each)
        and (text.meaning is not None or _alike(table, [text, each]))
    ]
    return [each for each in table.columns if each is text or each in titles or each in compared]


TASK = Task("classification", _readings, "classification", joins=True)
