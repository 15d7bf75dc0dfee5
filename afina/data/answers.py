"""What the answers of rows have in common, and the kind of task that follows: it decides how answers are scored."""

import json
from collections import Counter
from collections.abc import Iterable

from afina.core.errors import DataError, counted
from afina.data.layouts import Kind, Layout

_MOST_LABELS, _LONGEST_LABEL = 200, 60
_MOST_CLASSES = 2000  # distinct answers that are remembered


class AnswerStatistics:
    """What is known of the answers of rows, gathered one by one in bounded memory: `count` answers, `structured` of
    them JSON objects or lists."""

    def __init__(self, answers: Iterable[str] = ()) -> None:
        self.count = 0
        self._distinct: Counter[str] = Counter()
        self._many = False  # more distinct answers than are remembered
        self.structured = 0
        for answer in answers:
            self.add(answer)

    def add(self, answer: str) -> None:
        self.count += 1
        self.structured += is_structured(answer)
        if not self._many:
            self._distinct[answer] += 1
            self._many = len(self._distinct) > _MOST_CLASSES

    @property
    def classes(self) -> list[str]:
        """The distinct answers in order, where they may be classes: few, and repeated; else none."""
        repeated = len(self._distinct) <= max(2, self.count // 2)
        return sorted(self._distinct) if repeated and not self._many else []

    @property
    def shares(self) -> list[float]:
        """The fraction of answers that each class has, the most frequent first; none where there are no classes."""
        return [n / self.count for _, n in self._distinct.most_common()] if self.classes else []

    def unstructured(self) -> list[str]:
        """A line where they are to be scored as JSON, and some are not. Raises `DataError` where none is."""
        wrong = self.count - self.structured
        if self.count and not self.structured:
            raise DataError("--kind structured scores JSON, and no answer is a JSON object or list", "leave --kind out")
        return [f"{counted(wrong, 'answer is')} no JSON object or list, but scored as JSON"] if wrong else []

    def kind(self, layout: Layout | None) -> Kind:
        """`text` for plain text; `structured` where all answers are JSON objects or lists; else the layout's kind,
        where it has one; else `classification` where few short answers recur, else `generation`."""
        if layout is not None and layout.kind == "text":
            return "text"
        if self.count and self.structured == self.count:
            return "structured"
        if layout is not None and layout.kind is not None:
            return layout.kind
        few = len(self._distinct) <= min(_MOST_LABELS, self.count // 3) and not self._many
        if few and self._distinct and max(map(len, self._distinct)) <= _LONGEST_LABEL:
            return "classification"
        return "generation"


def is_structured(text: str) -> bool:
    """Whether a text is a JSON object or list."""
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False
