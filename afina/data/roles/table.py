"""A table's columns, and how they hang together; and one way to read it, with the evidence for it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from afina.data.roles.columns import Column, Nature
from afina.data.roles.names import stem
from afina.data.roles.relation import Relation, relation, told

_UNNAMED = {"column", "col", "field", "feature", "unnamed"}  # stems that say nothing, as one letter does
_SHORTER = 0.7  # of a text's length: what was drawn from it is at most so long
_COPY = 0.9  # of the longer's words stand in the shorter, too: a copy
_OF_INPUTS = {
    "text": 0.3,
    "question": 0.3,
    "context": 0.3,
    "title": 0.0,
    "code": 0.0,
    "summary": -0.2,
}  # points of an input's meaning
_AGAINST = -0.7  # points of a name that speaks against the role


@dataclass
class Reading:
    """One way to read a table: `inputs` are asked, `answer` is learned, `references` are further answers to the same.

    `points` are those of its evidence, of which 1 is worth what a telling name is; `reasons` are what speaks for it."""

    inputs: list[Column]
    answer: Column
    points: float = 0.0
    reasons: list[str] = field(default_factory=list)
    references: list[Column] = field(default_factory=list)
    asking: str = ""  # what stands before the inputs

    def add(self, points: float, reason: str = "") -> None:
        self.points += points
        if reason and points > 0:
            self.reasons.append(reason)

    def names(self, **answers: float) -> None:
        """Adds what the names of the first input and of the answer say; `answers` are points by an answer's
        meaning."""
        if self.answer.meaning is not None:
            self.add(answers.get(self.answer.meaning, _AGAINST), "its name says so")
        if self.inputs[0].meaning is not None:
            self.add(_OF_INPUTS.get(self.inputs[0].meaning, _AGAINST))


class Table:
    """Columns, and how they hang together: computed once for each two."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = list(columns)
        self._relations: dict[tuple[Column, Column], Relation] = {}
        self._told: dict[tuple[Column, Column], float] = {}

    def of(self, *natures: Nature) -> list[Column]:
        return [column for column in self.columns if column.nature in natures]

    @cached_property
    def sentences(self) -> list[Column]:
        """Texts that people write."""
        return [column for column in self.of("text") if not column.is_code and column.words >= 2]

    def relation(self, one: Column, other: Column) -> Relation:
        if (one, other) not in self._relations:
            self._relations[one, other] = relation(one, other)
        return self._relations[one, other]

    def told(self, text: Column, label: Column) -> float:
        if (text, label) not in self._told:
            self._told[text, label] = told(text, label)
        return self._told[text, label]

    def is_copy(self, one: Column, other: Column) -> bool:
        """Whether two texts are one text twice, cleaned or with markup perhaps."""
        return self.relation(one, other).shared >= _COPY

    def after(self, one: Column, other: Column) -> bool:
        return self.columns.index(other) > self.columns.index(one)

    def siblings(self, column: Column) -> list[Column]:
        """The columns of one stem and one nature, this one among them: summary1, summary2."""
        own = stem(column.name)
        if len(own) < 2 or own.lower() in _UNNAMED or own == column.name:
            return [column]
        return [each for each in self.columns if stem(each.name) == own and each.nature == column.nature]

    def answers(self, *natures: Nature) -> list[Column]:
        """Columns that may be answers; of siblings the first."""
        return [column for column in self.of(*natures) if self.siblings(column)[0] is column]

    def feeds(self, column: Column) -> float:
        """How much of another text was drawn from this one, and from no other: what feeds another is no answer."""
        texts, own = self.of("text", "structured"), self.siblings(column)
        if column not in texts:
            return 0.0
        most = 0.0
        for other in texts:
            if other not in own and self.relation(column, other).ratio <= _SHORTER:
                elsewhere = (self.relation(each, other).held for each in texts if each not in (*own, other))
                most = max(most, self.relation(column, other).held - max(elsewhere, default=0.0))
        return most
