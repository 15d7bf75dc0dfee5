"""Cleaned and split data: copies removed, personal data masked, groups of near copies kept in one split.

The rows are read twice, as for training: a first pass keeps some 160 bytes of each, by which it is decided where they
go; in a second pass they are written. None of their text is kept.
"""

import heapq
import itertools
import json
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from afina.core.config import Settings, setting
from afina.core.errors import DataError
from afina.data.mapping import Example, Unusable, check_usable, map_examples
from afina.data.quality.duplicates import Seen, Sketches, grouped_rows, mixed
from afina.data.quality.signals import damaged, masked, repaired
from afina.data.read import OpenFiles, read
from afina.data.rows import Notes, Record, Rejected, Rejections
from afina.data.settings import DataSettings
from afina.models.tokenizer import Message

Order = Literal["random", "stratified", "time"]
Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]
TRAIN, TEST = 1, 2  # where a row goes; 0 is nowhere


class PrepareSettings(Settings):
    """What `afina data prepare` does, in this order: repair, mask, remove copies, split."""

    repair: bool = False
    """Repair texts that were read in a wrong encoding (mojibake)."""
    mask: bool = False
    """Replace personal data by [E-MAIL], [TELEPHONE], [CARD] and [CPF]."""
    keep_copies: bool = setting(False, "--keep-copies")
    """Keep rows that are exact copies of others."""
    test: float = setting(0.1, ge=0, lt=1)
    """Fraction of the rows in the test split."""
    split: Order = "random"
    """How the test split is chosen: random, stratified (each answer in its proportion), time (the last ones, by
    --by)."""
    by: str | None = None
    """Column that orders the rows in time (numbers, or dates such as 2024-03-01)."""
    mix: str | None = None
    """Further files, with their number of rows per row of FILE: other.jsonl=0.5,more.csv=0.1."""
    replay: str | None = None
    """Further files for the training split only, with their number of rows per row of it, against forgetting: general
    text or conversations."""
    format: Literal["jsonl", "parquet"] = "jsonl"
    """What is written."""
    split_near: bool = setting(False, "--split-near")
    """Let rows with nearly the same prompt fall into both splits; by default they stay together."""
    seed: int = setting(0, ge=0)
    """Decides the split, whatever the order of the rows."""


@dataclass
class Part:
    """The usable rows of one file, which may be read again and again: those that `taken` chooses, or all.

    `unfit` raises `Unusable` for an example that the base cannot learn. When the rows are first read, what cannot be
    used goes into `rejected`, and what is found out about the file into `notes`.
    """

    settings: DataSettings
    rejected: Rejections
    unfit: Callable[[Example], None]
    files: OpenFiles
    notes: Notes = field(default_factory=Notes)
    taken: Mask | None = None
    was_read: bool = False

    def __iter__(self) -> Iterator[Example]:
        """Raises `DataError` where a file cannot be read, or none of its rows be used."""
        usable = self._usable()
        return usable if self.taken is None else itertools.compress(usable, self.taken)

    def _usable(self) -> Iterator[Example]:
        count, rejected, first = 0, Rejections(), not self.was_read
        notes, self.was_read = self.notes if first else Notes(), True
        for row in map_examples(self.settings, notes, needs_completion=True, files=self.files):
            found = self._fitting(row)
            if isinstance(found, Rejected):
                rejected.add(found)
                continue
            count += 1
            yield found
        check_usable(self.settings, count, rejected)
        for each in rejected if first else ():
            self.rejected.add(each)

    def _fitting(self, row: Example | Rejected) -> Example | Rejected:
        if isinstance(row, Example):
            try:
                self.unfit(row)
            except Unusable as reason:
                return Rejected(row.location, str(reason))
        return row

    def times(self, column: str) -> Iterator[Any]:
        """What the column holds in each of the usable rows; None where it holds nothing."""
        records = (row for row in read(self.settings, Notes(), self.files) if isinstance(row, Record))
        for example in self:
            yield next(each for each in records if each.location == example.location).values.get(column)


class Preparation:
    """Where each row of `parts` goes (`places`: TRAIN, TEST or nowhere), and what was `done` to how many rows.

    Raises `DataError` where nothing can be split.
    """

    def __init__(self, parts: Sequence[Part], settings: PrepareSettings) -> None:
        if settings.split == "time":
            _check_time(settings)
        self.parts, self.settings = parts, settings
        self.done: Counter[str] = Counter()
        self.plain = True
        """Whether all conversations are one question and one answer."""
        near = not settings.split_near and settings.split != "time"
        self._prompts, self._rows, self._answers = Seen(), Seen(), Seen()
        self._sketches = Sketches() if near else None
        for example in itertools.chain.from_iterable(parts):
            self._look(*self._changed(example))
        self.places = self._places()

    def _look(self, example: Example, repaired: bool, masked: bool) -> None:
        self.done["repaired"] += repaired
        self.done["masked"] += masked
        self._prompts.add(example.prompt_key)
        self._rows.add(f"{example.prompt_key}\n{json.dumps(example.answer, ensure_ascii=False)}")
        if self.settings.split == "stratified":
            self._answers.add(example.completion or "")
        if self._sketches is not None:
            self._sketches.add(example.source)
        self.plain = self.plain and is_plain(example)

    def _changed(self, example: Example) -> tuple[Example, bool, bool]:
        """The example, repaired and masked as is wanted; whether each changed it."""
        before, mended = example, example
        if self.settings.repair:
            mended = _rewritten(before, lambda text: (repaired(text) or text) if damaged(text) else text)
        after = _rewritten(mended, masked) if self.settings.mask else mended
        return after, mended != before, after != mended

    def written(self) -> Iterator[tuple[Example, bool]]:
        """The rows that are kept, as they are written, in their order; whether each is in the test split."""
        examples = itertools.chain.from_iterable(self.parts)
        for example, place in itertools.zip_longest(examples, self.places.tolist()):
            if example is None or place is None:
                raise DataError(f"{self.parts[0].settings.path} was changed while it was read", "start again")
            if place:
                yield self._changed(example)[0], place == TEST

    def counts(self) -> tuple[int, int]:
        """How many rows there are to train on, and to test on."""
        return int((self.places == TRAIN).sum()), int((self.places == TEST).sum())

    def _places(self) -> np.ndarray:
        rows = self._rows.values()
        kept = np.arange(len(rows)) if self.settings.keep_copies else np.sort(np.unique(rows, return_index=True)[1])
        self.done["copies taken out"] = len(rows) - len(kept)
        places = np.zeros(len(rows), np.int8)
        places[kept] = TRAIN
        wanted = round(self.settings.test * len(kept))
        if wanted:
            held = self._by_time(kept, wanted) if self.settings.split == "time" else self._drawn(kept, wanted)
            if not held.any() and self.settings.split == "stratified":
                raise DataError("no answer is frequent enough to be in both splits", "use --split random")
            if held.all() or not held.any():
                raise DataError(
                    "all rows have nearly the same prompt, so there can be no test split",
                    "give more varied rows, or --split-near",
                )
            places[kept[held]] = TEST
        return places

    def _by_time(self, kept: np.ndarray, wanted: int) -> Mask:
        """The last rows; those of one moment stay together."""
        column, moments = str(self.settings.by), _Moments()
        for example, value in zip(self.parts[0], self.parts[0].times(column), strict=True):
            if value is None:
                raise DataError(
                    f"{example.location} has no {column!r}, by which rows are ordered in time",
                    "name another column with --by",
                )
            moments.add(str(value))
        first = heapq.nlargest(wanted, (moments[row] for row in kept.tolist()))[-1]
        return np.fromiter((moments[row] >= first for row in kept.tolist()), bool, len(kept))

    def _drawn(self, kept: np.ndarray, wanted: int) -> Mask:
        """Whole groups of rows, drawn by seed and content alone."""
        prompts = self._prompts.values()[kept]
        near = self._sketches.only(kept).pairs() if self._sketches is not None else ()
        group_of = grouped_rows(prompts, near)
        ranks = mixed(prompts, self.settings.seed)
        order = np.lexsort((ranks, group_of))  # by group, its least rank first
        groups, at, sizes = np.unique(group_of[order], return_index=True, return_counts=True)
        leaders = order[at]
        drawn = np.argsort(ranks[leaders], kind="stable")
        if self.settings.split == "random":
            chosen = _fill(sizes, drawn.tolist(), wanted)
        else:
            chosen = self._of_each_answer(self._answers.values()[kept][leaders], sizes, drawn, wanted / len(kept))
        return np.isin(group_of, groups[chosen])

    @staticmethod
    def _of_each_answer(answers: np.ndarray, sizes: np.ndarray, drawn: np.ndarray, share: float) -> list[int]:
        """Groups of each answer (that of their first rows) in its proportion."""
        strata: dict[int, list[int]] = {}
        for group in drawn.tolist():
            strata.setdefault(int(answers[group]), []).append(group)
        return [g for each in strata.values() for g in _fill(sizes, each, round(share * int(sizes[each].sum())))]


def _check_time(settings: PrepareSettings) -> None:
    if settings.by is None:
        raise DataError("a split by time needs the column that orders the rows", "give --by COLUMN")
    if settings.mix:
        raise DataError("--mix brings rows that have no time", "leave --mix or --split time out")


class _Moments:
    """Points in time by row: numbers before other texts, each in their order."""

    def __init__(self) -> None:
        self._numbers, self._texts = array("d"), dict[int, str]()

    def add(self, value: str) -> None:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self._texts[len(self._numbers)] = value
        self._numbers.append(number)

    def __getitem__(self, row: int) -> tuple[int, float, str]:
        return (0, self._numbers[row], "") if row not in self._texts else (1, 0.0, self._texts[row])


def _fill(sizes: np.ndarray, drawn: Sequence[int], wanted: int) -> list[int]:
    """Of the groups `drawn`, in this order, those that fit into so many rows; the smallest where none does."""
    chosen: list[int] = []
    count = 0
    for group in drawn:
        if count == wanted:
            break
        size = int(sizes[group])
        if count + size <= wanted:
            chosen.append(group)
            count += size
    if not chosen and wanted and len(drawn) > 1:
        chosen = [min(drawn, key=lambda group: int(sizes[group]))]
    return chosen


def _rewritten(example: Example, change: Callable[[str], str]) -> Example:
    messages = tuple(_changed_message(message, change) for message in example.messages)
    completion = None if example.completion is None else change(example.completion)
    references = tuple(map(change, example.references))
    return replace(
        example,
        messages=messages,
        completion=completion,
        references=references,
        source=change(example.source),
        extra=_changed_message(example.extra, change),
    )


def _changed_message(message: Message, change: Callable[[str], str]) -> Message:
    """The message with its texts changed: what it says, thinks and gives to tools."""

    def deep(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: deep(each) for key, each in value.items()}
        if isinstance(value, list):
            return [deep(each) for each in value]
        return change(value) if isinstance(value, str) else value

    texts: Message = {name: deep(message[name]) for name in ("content", "reasoning_content") if name in message}
    calls = [
        {**call, "function": {**call["function"], "arguments": deep(call["function"]["arguments"])}}
        for call in message.get("tool_calls", ())
    ]
    return {**message, **texts, **({"tool_calls": calls} if calls else {})}


def shares(text: str | None, flag: str) -> list[tuple[Path, float]]:
    """'a.jsonl=0.5,b.csv=2' as files and numbers. Raises `DataError`."""
    found = []
    for part in text.split(",") if text else ():
        name, _, number = part.rpartition("=")
        try:
            share = float(number)
        except ValueError:
            share = 0.0
        if not name or not 0 < share < float("inf"):
            raise DataError(
                f"{flag} {part!r} is not a file and a number", f"write {flag} FILE=NUMBER, such as a.csv=0.5"
            )
        found.append((Path(name), share))
    return found


def is_plain(example: Example) -> bool:
    """Whether it is a text, or one question and its answer, which need no list of messages."""
    asked = [message["role"] for message in example.messages]
    return not asked or (asked == ["user"] and not example.tools and not example.extra)


def _written(message: Message) -> Message:
    """With the arguments of calls as JSON, as OpenAI's files have them: in a table they are of one type."""
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(arguments, ensure_ascii=False)}}
        if isinstance(arguments := call["function"]["arguments"], dict)
        else call
        for call in message.get("tool_calls", ())
    ]
    return {**message, **({"tool_calls": calls} if calls else {})}


def row_of(example: Example, plain: bool) -> dict[str, Any]:
    """The example as a row that is read again without any flag: a `plain` prompt, or messages."""
    if not example.messages:
        return {"text": example.completion}
    if plain:
        row: dict[str, Any] = {"prompt": example.messages[0]["content"], "completion": example.completion}
    else:
        messages = [
            {**_written(message), **({"weight": 0} if number in example.unlearned else {})}
            for number, message in enumerate((*example.messages, example.answer))
        ]
        row = {"messages": messages}
        if example.tools:
            row["tools"] = json.dumps(example.tools, ensure_ascii=False)
    if example.references not in ((), (example.said,)):
        row["references"] = list(example.references)
    return row
