"""Response generation: what one says, and what another replies."""

from collections.abc import Iterator

from afina.data.roles.table import Reading, Table
from afina.data.roles.tasks import Task

_ASKS = 0.5


def _readings(table: Table) -> Iterator[Reading]:
    for said in table.sentences:
        for reply in table.of("text"):
            if said is reply or reply.is_code or said.asks >= _ASKS or reply.asks >= _ASKS:
                continue
            found = Reading([said], reply)
            found.add(0.4, f"it answers {said.name!r}")
            found.add(min(0.3, table.relation(said, reply).held))
            found.add(0.3 if table.after(said, reply) else -0.3, "it comes second")
            found.names(answer=1.0, reference=0.8, text=-0.3, title=-0.7)
            found.add(-table.feeds(reply))
            others = (each for each in table.of("text") if each not in (said, reply))
            contexts = [each for each in others if each.meaning in ("context", "title")]
            found.inputs = [*contexts, said]
            yield found


TASK = Task("response generation", _readings, "chat", joins=True)
