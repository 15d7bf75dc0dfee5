"""Columns that are not learned from, but say of a row what it is: whether it is wanted, and of which part."""

from collections.abc import Collection, Sequence
from typing import Any

from afina.data.files.folders import part_word
from afina.data.mapping.example import Refused
from afina.data.rows import Notes, Record

_PARTS = ("split", "subset", "partition", "part", "fold", "set", "dataset_split")
_FLAGS = ("label", "weight", "train", "loss", "correct", "is_correct", "accepted")  # false or 0 speaks against a row
_CLASSES = ("label", "train")  # may have a number 0 that means no more than another
_FALSE = {"false"}
# What programs for annotation write into a column: all of its words, and those by which a row was refused.
_REFUSALS: dict[str, tuple[set[str], set[str]]] = {
    "answer": ({"accept", "reject", "ignore"}, {"reject", "ignore"}),  # Prodigy
    "status": ({"submitted", "discarded", "draft", "pending", "completed", "validated"}, {"discarded"}),  # Argilla
}
_JUDGED = {"prompt", "completion", "label"}  # answers that are marked as good or bad, as KTO learns from them


class Verdicts:
    """Looks at those of the `unread` columns of each row that say what it is; `sample` are the first rows."""

    def __init__(
        self, path: object, columns: Sequence[str], unread: Collection[str], sample: Sequence[dict[str, Any]]
    ) -> None:
        self.path = path
        known = {name.strip().lower(): name for name in unread}
        self._parts = [known[key] for key in _PARTS if key in known]
        self._flags = {known[key]: {"0", "0.0", "false"} for key in _FLAGS if key in known}
        self._flags |= {known[key]: _FALSE for key in _CLASSES if key in known}
        self._refusals: dict[str, set[str]] = {}
        for key, (every, refusing) in _REFUSALS.items():
            if key in known and _words(known[key], sample) <= every:
                self._refusals[known[key]] = refusing
        judged = {name.strip().lower() for name in columns} >= _JUDGED
        if judged and "label" in known and _words(known["label"], sample) <= {"true", "false"}:
            self._refusals[known["label"]] = self._flags.pop(known["label"])

    def look(self, record: Record, notes: Notes) -> None:
        """Warns of what is used all the same. Raises `Refused` for a row that the file itself marks as unwanted."""
        for name, refusing in self._refusals.items():
            if _word(record.values.get(name)) in refusing:
                raise Refused(f"{name!r} is {record.values[name]}, which marks it as not wanted")
        for name, speaking in self._flags.items():
            if _word(value := record.values.get(name)) in speaking:
                text = (
                    f"{name!r} is {value}, and they are learned like the others: if it marks answers that are not "
                    "wanted, delete these rows from the file"
                )
                notes.warn("verdicts", text, record.location)
        for name in self._parts:
            word = str(record.values.get(name)).strip()
            if part_word(word):
                text = (
                    f"{name!r} names parts, whose rows are used alike, those of a test too: write each part to a file "
                    "of its own, such as train.jsonl and test.jsonl in one folder"
                )
                notes.warn("parts", text, record.location, value=word, least=2)


def _word(value: Any) -> str:
    return str(value).strip().lower()


def _words(column: str, sample: Sequence[dict[str, Any]]) -> set[str]:
    """What stands in the column, but nothing and null."""
    return {_word(row.get(column)) for row in sample if row.get(column) not in (None, "")}
