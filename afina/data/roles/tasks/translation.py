"""Translation: two texts of two languages, of nearly the same length row by row."""

from collections.abc import Iterator

from afina.data.layouts import language
from afina.data.roles.table import Reading, Table
from afina.data.roles.tasks import Task

_SHORTEST, _LONGEST = 0.4, 2.5  # a translation's length over its source's
_SHARED = 0.35  # of the words, names and numbers among them: more is one language
_ALIKE = 0.6  # correlation of lengths that speaks for itself


def _readings(table: Table) -> Iterator[Reading]:
    for source in table.of("text"):
        for target in table.of("text"):
            if source is target or source.is_code or target.is_code:
                continue
            found = Reading([source], target)
            pair = table.relation(source, target)
            one, other = language(source.name), language(target.name)
            named = bool(one and other and one != other)
            one, other = (one, other) if named else (source.tongue, target.tongue)
            if not named and (not _SHORTEST < pair.ratio < _LONGEST or pair.vocabulary > 2 * _SHARED):
                continue
            if one and other and one != other:
                found.add(1.4 if named else 1.0, f"{source.name!r} is {one}, {target.name!r} is {other}")
                found.asking = f"Translate from {one} to {other}: "
            elif (one == other and one) or pair.vocabulary > _SHARED or pair.alike < _ALIKE:
                continue
            else:
                found.add(0.5, f"it shares few words with {source.name!r}")
                found.asking = "Translate: "
            found.add(0.8 * max(0.0, pair.alike), "their lengths go together")
            found.add(0.3 if table.after(source, target) else -0.3)
            found.names(answer=0.5)
            yield found


TASK = Task("translation", _readings, "translation")
