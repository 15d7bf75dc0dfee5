"""Which rows are trained on, held out and tested: the first pass over the data, before any model is known.

Nine bytes per row are kept: a digest of its prompt, so that rows with the same prompt stay in one split, and whether it
has one.
"""

import itertools
import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np

from afina.core.config import changed
from afina.core.errors import DataError, counted
from afina.core.events import Listener, ignore
from afina.data.answers import AnswerStatistics
from afina.data.layouts import Kind
from afina.data.mapping import Example, check_usable, map_examples, usable_examples
from afina.data.parts import part_words, parted
from afina.data.quality.checks import Checker
from afina.data.quality.duplicates import Seen, leaked, mixed
from afina.data.read import OpenFiles
from afina.data.rows import Notes, Rejected, Rejections
from afina.data.settings import DataSettings

Look = Callable[[Example | Rejected], None]
Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]


def sample(count: int, limit: int | None, seed: int) -> Mask:
    """Which of `count` rows are taken: `limit` of them, by `seed`; all where there are no more."""
    chosen = np.ones(count, bool)
    if limit is not None and limit < count:
        chosen[:] = False
        chosen[random.Random(seed).sample(range(count), limit)] = True
    return chosen


def split(prompts: np.ndarray, fraction: float, most: int, seed: int) -> Mask:
    """Which rows are held out: whole groups of identical prompt (by digest), drawn by `seed` until `fraction` of the
    rows, at most `most`, whatever the order of the rows.

    Raises `DataError` where there are fewer than two distinct prompts.
    """
    distinct, counts = np.unique(prompts, return_counts=True)
    if len(distinct) < 2:
        raise DataError(
            f"only {counted(len(distinct), 'distinct prompt')} in "
            f"{counted(len(prompts), 'row')}: nothing can be held out to evaluate on",
            "give more examples, or a held-out file with --eval-data",
        )
    wanted = min(most, max(1, round(len(prompts) * fraction)))
    held: list[int] = []
    count = 0
    for group in np.argsort(mixed(distinct, seed), kind="stable")[:-1]:
        if count >= wanted:
            break
        if not held or count + counts[group] <= wanted:
            held.append(group)
            count += int(counts[group])
    return np.isin(prompts, distinct[held])


@dataclass(frozen=True)
class Splits:
    """The usable rows of each split, by their number in its file, before any model is known.

    `answers` are those of all usable rows. The held-out rows are of `settings.eval_path` where that is given, the test
    rows of `settings.test_path`. `leaks` has a line for each of these files some of whose prompts are trained on.
    `files` are all that were read, to be read again."""

    settings: DataSettings
    seed: int
    train: Mask
    held_out: Mask
    test: Mask
    answers: AnswerStatistics
    rejected: Rejections
    notes: Notes
    leaks: list[str]
    files: OpenFiles

    @property
    def kind(self) -> Kind:
        return self.settings.kind or self.answers.kind(self.notes.layout)

    @property
    def encoding(self) -> str | None:
        """That of all its text files, where it is neither UTF-8 nor said by the files themselves."""
        return self.settings.encoding or self.files.encoding

    def training_examples(self) -> Iterator[Example]:
        """The rows that are trained on, read again."""
        again = self.read_again(training_file(self.settings), len(self.train))
        return itertools.compress(again, self.train)

    def examples_at(self, locations: Collection[str]) -> list[Example]:
        """The examples of the training file at the given locations."""
        again = self.read_again(training_file(self.settings), len(self.train))
        return [example for example in again if example.location in locations]

    def read_again(self, settings: DataSettings, count: int, is_test: bool = False) -> Iterator[Example]:
        """The `count` usable rows of a file, a second time. Raises `DataError` where there are not as many as the first
        time."""
        number = 0
        examples = usable_examples(settings, Notes(), Rejections(), needs_completion=not is_test, files=self.files)
        for number, example in enumerate(examples, 1):
            if number > count:
                break
            yield example.answered() if is_test else example
        if number != count:
            raise DataError(f"{settings.path} was changed while it was read", "start again")

    def resolved(self) -> "Splits":
        """With settings that hold the kind and the templates of the layout that was recognised, so that they say all of
        it."""
        return replace(self, settings=self.settings.resolved(self.kind, self.notes.layout, self.encoding))


def read_splits(
    settings: DataSettings, seed: int, checker: Checker | None = None, listener: Listener = ignore
) -> Splits:
    """Reads, samples and splits; `checker` sees the rows as they pass, and `listener` hears how far that is. Raises
    `DataError` where a file is unreadable or no row is usable."""
    first, settings = _FirstPass(checker, listener), parted(settings)
    first.notes.say(*part_words(settings))
    rows = first.train(training_file(settings))
    is_text = first.notes.layout is not None and first.notes.layout.kind == "text"
    if settings.kind is not None and (settings.kind == "text") != is_text:
        what = "is plain text, without prompts" if is_text else "holds prompts and answers, not plain text"
        raise DataError(f"--kind {settings.kind}: {settings.path} {what}", "leave --kind out")
    if settings.kind == "structured":
        first.notes.say(*(f"{settings.path}: {line}" for line in first.answers.unstructured()))
    train = sample(len(rows.prompts), settings.limit, seed)
    test = np.zeros(len(rows.prompts), bool)
    if settings.test_path:
        test = first.test(test_split_file(settings), settings.test_rows, seed, rows.prompts[train])
    elif settings.test:
        test = rows.drawn(train, settings.test, settings.test_rows, seed + 1)
        train = train & ~test
    if settings.eval_path is None:
        held_out = rows.drawn(train, settings.held_out, settings.held_out_rows, seed)
        train = train & ~held_out
    else:
        held_out = first.held_out(held_out_file(settings), settings.held_out_rows, seed, rows.prompts[train])
    first.files.quiet()
    return Splits(
        settings, seed, train, held_out, test, first.answers, first.rejected, first.notes, first.leaks, first.files
    )


def character_counts(splits: Splits) -> list[tuple[int, int]]:
    """Of each row that is trained on: the characters that are read, and those of the answer."""
    return [
        (sum(len(message["content"]) for message in example.messages), len(example.completion or ""))
        for example in splits.training_examples()
    ]


def training_file(settings: DataSettings) -> DataSettings:
    """What the training file is read with."""
    return changed(settings, {"references": None}) if settings.test_path else settings


def test_split_file(settings: DataSettings) -> DataSettings:
    """What the file of the test split is read with."""
    return changed(settings, {"path": settings.test_path})


def held_out_file(settings: DataSettings) -> DataSettings:
    """What the file of held-out rows is read with."""
    return changed(training_file(settings), {"path": settings.eval_path})


@dataclass(frozen=True)
class _Rows:
    """The usable rows of a file: a digest of each prompt, and which may be held out (all but plain text among
    prompts)."""

    prompts: np.ndarray
    prompted: Mask

    def drawn(self, available: Mask, fraction: float, most: int, seed: int) -> Mask:
        """Some of the available rows."""
        mask = np.zeros(len(self.prompts), bool)
        chosen = available & self.prompted
        mask[chosen] = split(self.prompts[chosen], fraction, most, seed)
        return mask


class _FirstPass:
    """What is gathered from the files of a data set as they are read."""

    def __init__(self, checker: Checker | None, listener: Listener) -> None:
        self.files, self.checker = OpenFiles(listener=listener), checker
        self.answers, self.notes, self.rejected = AnswerStatistics(), Notes(), Rejections()
        self.leaks: list[str] = []

    def read(self, settings: DataSettings, notes: Notes, look: Look | None, is_test: bool = False) -> _Rows:
        """The usable rows of a file; `look` is shown every row."""
        seen, has_prompt, rejected = Seen(), bytearray(), Rejections()
        for row in map_examples(settings, notes, needs_completion=not is_test, files=self.files):
            if look:
                look(row)
            if isinstance(row, Rejected):
                rejected.add(row)
                continue
            seen.add(row.prompt_key)
            has_prompt.append(bool(row.messages))
            if row.messages and not is_test:
                self.answers.add(row.said)
        check_usable(settings, len(has_prompt), rejected)
        self.rejected = Rejections(itertools.chain(self.rejected, rejected))
        prompted = np.frombuffer(has_prompt, bool)
        return _Rows(seen.values(), prompted if prompted.any() else np.ones(len(prompted), bool))

    def train(self, settings: DataSettings) -> _Rows:
        return self.read(settings, self.notes, self.checker.add if self.checker else None)

    def held_out(self, settings: DataSettings, most: int, seed: int, trained: np.ndarray) -> Mask:
        return self._other(settings, most, seed, trained, self.checker.add_held_out if self.checker else None)

    def test(self, settings: DataSettings, most: int, seed: int, trained: np.ndarray) -> Mask:
        return self._other(settings, most, seed, trained, None, is_test=True)

    def _other(
        self,
        settings: DataSettings,
        most: int,
        seed: int,
        trained: np.ndarray,
        look: Look | None,
        is_test: bool = False,
    ) -> Mask:
        """The rows of another file that are evaluated on, at most so many; those that `trained` holds too are
        counted."""
        notes = Notes()
        rows = self.read(settings, notes, look, is_test)
        self.notes.say(*notes.lines)
        mask = np.zeros(len(rows.prompts), bool)
        mask[rows.prompted] = sample(int(rows.prompted.sum()), most, seed)
        both = len(np.unique(rows.prompts[mask & leaked(rows.prompts, trained)]))
        if both:
            text = f"{settings.path}: {counted(both, 'prompt is')} also trained on, so that its scores will be too good"
            self.leaks.append(text)
        return mask
