"""Question answering: a question, often with the text that it is about or with options, and its answer."""

import re
from collections.abc import Iterator

from afina.data.roles.columns import Column
from afina.data.roles.table import Reading, Table
from afina.data.roles.tasks import Task

_ASKS = 0.5  # of the rows end with a question mark
_TAKEN = 0.25  # of an answer's words that stand in its context, beyond chance
_LONGER = 2.0  # a context's length over the question's
_MOST = 6  # options in columns without names
_LETTERS = "ABCDEFGHIJ"


def _readings(table: Table) -> Iterator[Reading]:
    for question in table.sentences:
        if question.asks < _ASKS and question.meaning != "question":
            continue
        for answer in table.of("text", "label", "number", "list", "date"):
            if answer is question or answer.asks >= _ASKS or answer.is_code:
                continue
            options = _options(table, question, answer)
            contexts = [] if options else _contexts(table, question, answer)
            named = answer.meaning in ("answer", "reference")
            if answer.nature != "text" and not (named or options or contexts):
                continue
            found = Reading([question], answer)
            found.add(0.6 if question.asks >= _ASKS else 0.3, f"{question.name!r} asks")
            found.add(0.5 if answer.nature == "text" else 0.2)
            found.add(0.5 * table.relation(question, answer).held)
            found.add(0.8 if contexts else 0.0, f"it stands in {contexts[0].name!r}" if contexts else "")
            found.add(1.0 if options else 0.0, "it names one of the options")
            found.names(answer=1.0, reference=1.0, label=0.3 if options else -0.7, text=-0.3, title=-0.7)
            found.add(0.2 if table.after(question, answer) else 0.0)
            found.add(-table.feeds(answer))
            found.inputs = [*contexts, question, *options]
            found.references = [each for each in table.siblings(answer) if each.nature == "text"]
            yield found


def _contexts(table: Table, question: Column, answer: Column) -> list[Column]:
    """Longer texts that are called so, or in which the answer stands."""
    return [
        each
        for each in table.of("text")
        if each not in (question, answer)
        and table.relation(question, each).ratio >= _LONGER
        and each.meaning in ("context", "text", "title", None)
        and (each.meaning == "context" or table.relation(each, answer).held >= _TAKEN)
        and table.relation(answer, each).ratio > 1
    ]


def _options(table: Table, question: Column, answer: Column) -> list[Column]:
    """The columns of which the answer names one: by letter, by number, or word for word."""
    siblings = (table.siblings(each) for each in table.columns if each not in (question, answer))
    named = max(siblings, key=len, default=[])
    lettered = [each for each in table.columns if re.fullmatch("[A-J]", each.name)]
    at = table.columns.index(answer)
    before = table.columns[max(table.columns.index(question) + 1, 0) : at]
    lists = [each for each in table.columns if each.nature == "list" or each.meaning == "option"]
    values = set(answer.distinct)
    letters = values <= {*_LETTERS} and len(values) > 1
    numbers = values <= {*map(str, range(10))} and len(values) > 1
    for options in (
        named,
        lettered,
        before if letters and 1 < max(map(_LETTERS.index, values)) + 1 <= len(before) <= _MOST else [],
        lists,
    ):
        if len(options) == 1 and options in ([each] for each in lists) and (letters or numbers):
            return options
        if len(options) < 2 or answer in options or question in options:
            continue
        texts = zip(answer.texts, *(each.texts for each in options), strict=True)
        if letters or (numbers and len(values) <= len(options) + 1) or all(own in rest for own, *rest in texts):
            return options
    return []


TASK = Task("question answering", _readings, joins=True)
