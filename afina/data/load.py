"""From splits to rows on disk: what is trained and evaluated on, with an account of every row.

The data are read twice, row by row: a first pass decides which rows are in which split (splits.py), a second renders
them for a base, onto the disk. No step holds all of them."""

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from afina.core.device import cache_folder
from afina.core.errors import DataError
from afina.core.events import Listener, Progress, ignore
from afina.core.files import read_json, write_json
from afina.data.fitting import DEFAULT_MAX_LENGTH, Fitter
from afina.data.mapping import Example
from afina.data.rows import Rejected, Rejections
from afina.data.settings import DataSettings
from afina.data.splits import Mask, Splits, held_out_file, read_splits, test_split_file, training_file
from afina.data.store import Rows, RowsWriter, kept_rows
from afina.data.template import Row
from afina.models.load import Base
from afina.models.tokenizer import Tokenizer
from afina.version import __version__

_RENDERED = 2  # to be raised where rows are rendered otherwise, so that those in the cache are not found
_PROGRESS = 20_000  # rows between two reports of progress


@dataclass(frozen=True)
class Dataset:
    """Training rows, which lie on disk; held-out rows, by which a checkpoint is chosen; those of the test split, where
    there is one; the examples of the rows that are `evaluated` (for generation); rejected rows with reasons; what was
    found out about the files; what to warn of."""

    train: Rows
    held_out: list[Row]
    test: list[Row]
    examples: list[Example]
    rejected: Rejections
    notes: list[str]
    notices: list[str]

    @property
    def evaluated(self) -> list[Row]:
        """The rows that are evaluated on in the end: the test split's, or else the held-out ones."""
        return self.test or self.held_out

    @property
    def most_labelled(self) -> int:
        """The most tokens that are learned of any row, held-out ones included."""
        return max(self.train.most_labelled, *(row.labelled for row in self.held_out))


def load_data(settings: DataSettings, base: Base, seed: int = 0, cache_dir: Path | None = None) -> Dataset:
    """Reads, samples, splits and renders the data for `base`. Raises `DataError` as `read_splits` and `render_splits`
    do."""
    return render_splits(read_splits(settings, seed), base.tokenizer, base.facts.context_length, cache_dir)


def render_splits(
    splits: Splits, tokenizer: Tokenizer, context: int, cache_dir: Path | None = None, listener: Listener = ignore
) -> Dataset:
    """Renders the data for a base with this tokenizer and `context` (tokens) into the cache, where the next run with
    the same files, settings and tokenizer finds them.

    Raises `DataError` where rows are too long and `too_long` is 'error', none is left, or the end of turn carries no
    label."""
    settings = splits.settings
    max_length = min(settings.max_length or DEFAULT_MAX_LENGTH, context)
    key = _key(splits, tokenizer, max_length)

    def write(folder: Path) -> None:
        _Rendering(splits, Fitter(tokenizer, max_length, settings.too_long, context), listener).write(folder)

    opened = kept_rows(cache_folder(cache_dir), key, write, _open)
    facts = opened.facts
    examples = [_example(values) for values in facts["examples"]]
    rejected = Rejections(itertools.chain(splits.rejected, (Rejected(*row) for row in facts["rejected"])))
    notices = list(facts["notices"])
    if settings.max_length and settings.max_length > max_length:
        notices.append(f"rows may have {max_length} tokens, the context of this base, not {settings.max_length}")
    notices += splits.leaks
    return Dataset(opened.train, opened.held_out, opened.test, examples, rejected, splits.notes.lines, notices)


@dataclass(frozen=True)
class _Opened:
    """What `_Rendering` wrote."""

    facts: dict[str, Any]
    train: Rows
    held_out: list[Row]
    test: list[Row]


def _open(folder: Path, temporary: Path | None) -> _Opened:
    held_out, test = (list(Rows(folder / name)) for name in ("held_out", "test"))
    return _Opened(read_json(folder / "facts.json"), Rows(folder / "train", temporary), held_out, test)


class _Rendering:
    """The second pass: every row of a split is rendered and written."""

    def __init__(self, splits: Splits, fitter: Fitter, listener: Listener) -> None:
        self.splits, self.fitter, self.listener = splits, fitter, listener
        self.total = int(splits.train.sum() + splits.held_out.sum() + splits.test.sum())
        self.done = 0

    def write(self, folder: Path) -> None:
        splits, fitter, settings = self.splits, self.fitter, self.splits.settings
        train, held_out, test = (RowsWriter(folder / name) for name in ("train", "held_out", "test"))
        held_out_examples: list[Example] = []
        test_examples: list[Example] = []
        targets = [
            _Target(splits.train, train, None),
            _Target(splits.held_out, held_out, held_out_examples),
            _Target(splits.test, test, test_examples),
        ]
        own = [
            each
            for each, path in zip(targets, (None, settings.eval_path, settings.test_path), strict=True)
            if path is None
        ]
        self._file(training_file(settings), own)
        if settings.eval_path is not None:
            self._file(held_out_file(settings), [targets[1]])
        if settings.test_path is not None:
            self._file(test_split_file(settings), [targets[2]], is_test=True)
        for writer in (train, held_out, test):
            writer.close()
        fitter.check_lengths(settings)
        needed = [("training", train), ("held-out", held_out), *([("test", test)] if splits.test.any() else [])]
        for what, rows in needed:
            if not rows.count:
                every = Rejections(itertools.chain(splits.rejected, fitter.rejected))
                raise DataError(
                    [f"{settings.path}: no {what} row is left", *every.lines()], "give more or shorter rows"
                )
        facts = {
            "notices": fitter.notices(),
            "rejected": [[row.location, row.reason] for row in fitter.rejected],
            "examples": [_plain(example) for example in test_examples or held_out_examples],
        }
        write_json(folder / "facts.json", facts)

    def _file(self, settings: DataSettings, targets: "list[_Target]", is_test: bool = False) -> None:
        """The rows of a file that a mask chooses, each to its split."""
        numbers = np.zeros(len(targets[0].mask), np.int8)
        for number, target in enumerate(targets, 1):
            numbers[target.mask] = number
        again = self.splits.read_again(settings, len(numbers), is_test)
        chosen = ((example, int(number)) for example, number in zip(again, numbers, strict=True) if number)
        for pairs, number in self.fitter.fit_marked(chosen):
            target = targets[number - 1]
            for row, example in pairs:
                if self.fitter.tokenizer.task.writes_text:
                    _check_labels(row, example, self.fitter.tokenizer)
                target.writer.add(row)
                if target.examples is not None:
                    target.examples.append(example)
            self.done += 1
            if self.done % _PROGRESS == 0:
                self.listener(Progress("rows prepared", self.done, self.total))


@dataclass(frozen=True)
class _Target:
    """Where the rows of one split go; of those that are evaluated on the examples are kept too."""

    mask: Mask
    writer: RowsWriter
    examples: list[Example] | None


def _plain(example: Example) -> dict[str, Any]:
    values = asdict(example)
    return {"where": values.pop("location"), **values}


def _example(values: dict[str, Any]) -> Example:
    listed = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Example(**{"location": values.pop("where"), **values, **listed})


def _key(splits: Splits, tokenizer: Tokenizer, max_length: int) -> str | None:
    """Equal for data that are rendered alike; None where that cannot be known without rendering them."""
    files = splits.files.fingerprint(splits.settings)
    if files is None:
        return None
    decides = [
        __version__, _RENDERED, files, splits.settings.model_dump(mode="json"), splits.seed, max_length,
        tokenizer.hash, tokenizer.template_hash(), sorted(tokenizer.stop_ids), tokenizer.inner.eos_token_id,
        tokenizer.turn_end, tokenizer.classes,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]


def _check_labels(row: Row, example: Example, tokenizer: Tokenizer) -> None:
    """A row must teach something, and teach the model to stop."""
    if not row.labelled:
        raise DataError(
            f"{row.location}: no token of it would be learned", "check the completion and the chat template"
        )
    if not example.unfinished and row.labels[-1] not in tokenizer.stop_ids:
        raise DataError(
            f"{row.location}: the end of the answer is not learned, so the model would never stop",
            "choose a base whose chat template ends turns with a special token",
        )
