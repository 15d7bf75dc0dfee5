"""Text from a text of nearly the same length: corrections, simplifications, paraphrases, data told in sentences."""

from collections.abc import Iterator

from afina.data.roles.table import Reading, Table
from afina.data.roles.tasks import Task

_SHORTEST, _LONGEST = 0.5, 3.0  # the answer's length over the input's
_TAKEN = 0.4  # of the words of both, beyond chance, at least


def _readings(table: Table) -> Iterator[Reading]:
    for source in table.of("text", "structured"):
        for other in table.answers("text"):
            pair = table.relation(source, other)
            if (
                source is other
                or (other.is_code and not source.is_code)
                or not _SHORTEST < pair.ratio < _LONGEST
                or pair.held + pair.holds < 2 * _TAKEN
            ):
                continue
            if abs(other.asks - source.asks) > 0.5:
                continue
            found = Reading([source], other)
            found.add(0.6 + 0.5 * (pair.held + pair.holds), f"{source.name!r} and it say the same")
            found.add(0.4 if table.after(source, other) else -0.3, "it comes second")
            found.names(answer=1.0, reference=1.0, text=-0.2, summary=-0.3)
            found.add(-table.feeds(other))
            found.add(-_drawn(table, source))
            found.references = [each for each in table.siblings(other) if each is not source]
            yield found


def _drawn(table: Table, source: object) -> float:
    """How much of the source was itself drawn from a longer text: two summaries of one text resemble each other."""
    longer = (table.relation(each, source) for each in table.sentences if each is not source)  # type: ignore[arg-type]
    return max((pair.held for pair in longer if pair.ratio < _SHORTEST), default=0.0)


TASK = Task("text generation", _readings)
