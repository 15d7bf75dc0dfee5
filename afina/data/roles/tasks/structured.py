"""Structured output: JSON, a query or a program for what a text says, often with the schema that it is about."""

from collections.abc import Iterator

from afina.data.roles.columns import Column
from afina.data.roles.table import Reading, Table
from afina.data.roles.tasks import Task

_HELD = 0.3  # of its values: more are drawn from the text


def _readings(table: Table) -> Iterator[Reading]:
    codes = [column for column in table.of("text") if column.is_code]
    for answer in [*table.of("structured"), *codes]:
        for text in table.sentences:
            found = Reading([text], answer)
            pair = table.relation(text, answer)
            what = "JSON" if answer.nature == "structured" else "a query or a program"
            found.add(0.9, f"it is {what}, and {text.name!r} is a text")
            found.add(0.8 * pair.held, f"its values stand in {text.name!r}")
            if answer.keeps_records and pair.held < _HELD:
                found.add(-2.0)
            found.add(0.3 if table.after(text, answer) else -0.3)
            found.names(
                answer=1.0, label=0.8, reference=0.8, question=0.5, code=0.8 if answer.is_code else -0.7, text=-0.7
            )
            found.add(-table.feeds(answer))
            found.inputs = [*_schemas(table, answer), text]
            yield found


def _schemas(table: Table, answer: Column) -> list[Column]:
    """What is called a schema or a context, and further code in which the answer's names stand."""
    return [
        each
        for each in table.columns
        if each is not answer
        and each.nature in ("text", "structured")
        and (each.meaning == "context" or (each.is_code and table.relation(each, answer).held > 0.2))
    ]


TASK = Task("structured output", _readings)
