"""From a file of examples to what is trained and evaluated on, with an account of every row.

The file is read twice, row by row: a first pass decides which rows are trained on (nine bytes a row are kept), a second renders
them for a base, onto the disk. No step holds all of them.
"""

import hashlib
import itertools
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from afina.core.device import cache_folder
from afina.core.errors import DataError
from afina.core.events import Listener, Progress, ignore
from afina.core.files import read_json, write_json
from afina.data.files import fingerprint
from afina.data.kinds import Answers
from afina.data.layouts import Kind
from afina.data.mapping import Example, Unusable
from afina.data.mapping import examples as map_examples
from afina.data.quality.duplicates import Seen
from afina.data.read import is_hub_id
from afina.data.rows import Notes, Rejected, Rejections
from afina.data.settings import DataSettings
from afina.data.splits import Mask, sample, split
from afina.data.store import Rows, RowsWriter, Shelf
from afina.data.template import Row, divide, render, render_batches, shorten
from afina.models.load import Base
from afina.models.tokenizer import Tokenizer
from afina.version import __version__

DEFAULT_MAX_LENGTH = 1024
_BATCH = 256  # rows that are rendered at once
_NEWS = 20_000  # rows between two words of progress


@dataclass(frozen=True)
class Dataset:
    """Training rows, which lie on disk; held-out rows, by which a checkpoint is chosen; the rows that are evaluated on in the end,
    with their examples (for generation): those kept apart, or else the held-out ones; rejected rows with reasons; what was found
    out about the files; what to warn of."""

    train: Rows
    held_out: list[Row]
    test: list[Row]
    test_examples: list[Example]
    rejected: Rejections
    found: list[str]
    notices: list[str]

    @property
    def most_labelled(self) -> int:
        """The most tokens that are learned of any row, held-out ones included."""
        return max(self.train.most_labelled, *(row.labelled for row in self.held_out))


def read_examples(settings: DataSettings, *, needs_completion: bool) -> tuple[list[Example], Rejections, Notes]:
    """Every usable example of the file, every other row with its reason, and what was found out about the file.

    Raises `DataError` where none is usable.
    """
    notes, rejected = Notes(), Rejections()
    examples = list(_usable(settings, notes, rejected, needs_completion=needs_completion))
    _check_any(settings, len(examples), rejected)
    return examples, rejected, notes


def _usable(
    settings: DataSettings, notes: Notes, rejected: Rejections, *, needs_completion: bool = True
) -> Iterator[Example]:
    for row in map_examples(settings, notes, needs_completion=needs_completion):
        if isinstance(row, Rejected):
            rejected.add(row)
        else:
            yield row


def _check_any(settings: DataSettings, count: int, rejected: Rejections) -> None:
    if not count and not rejected:
        raise DataError(f"data {settings.path} is empty: it holds no example", "give a file with at least one")
    if not count:
        raise DataError([f"{settings.path}: no row can be used", *rejected.lines()], "mend the file or the templates")


@dataclass(frozen=True)
class Parts:
    """Which usable rows are trained on, held out and kept apart, by their number in the file, before any model is known.

    `answers` are those of all usable rows. The held-out rows are of `settings.eval_path` where that is given, those kept apart
    of `settings.test_path`. `shared` has a line for each of these files some of whose prompts are trained on.
    """

    settings: DataSettings
    seed: int
    train: Mask
    held_out: Mask
    test: Mask
    answers: Answers
    rejected: Rejections
    notes: Notes
    shared: list[str]

    @property
    def kind(self) -> Kind:
        return self.settings.kind or self.answers.kind(self.notes.layout)

    def resolved(self) -> "Parts":
        """With settings that hold the templates of the layout that was recognised and the kind, so that they say all of it."""
        return replace(self, settings=self.settings.resolved(self.kind, self.notes.layout))


def read_parts(settings: DataSettings, seed: int) -> Parts:
    """Reads, samples and splits. Raises `DataError` where a file is unreadable or no row is usable."""
    answers, notes = Answers(), Notes()

    def prompts(of: DataSettings, into: Notes, is_test: bool = False) -> tuple[np.ndarray, Mask, Rejections]:
        """A digest of each prompt, which rows may be held out (all but plain text among questions), and what cannot be used."""
        seen, rejected, asks = Seen(), Rejections(), bytearray()
        for example in _usable(of, into, rejected, needs_completion=not is_test):
            seen.add(example.prompt_key)
            asks.append(bool(example.messages))
            if example.messages and not is_test:
                answers.add(example.completion or "")
        values, asking = seen.values(), np.frombuffer(asks, bool)
        _check_any(of, len(values), rejected)
        return values, asking if asking.any() else np.ones(len(values), bool), rejected

    asked, asking, rejected = prompts(_of_train(settings), notes)
    train = sample(len(asked), settings.limit, seed)
    is_text = notes.layout is not None and notes.layout.kind == "text"
    if settings.kind is not None and (settings.kind == "text") != is_text:
        what = "is plain text, without questions" if is_text else "holds questions and answers, not plain text"
        raise DataError(f"--kind {settings.kind}: {settings.path} {what}", "leave --kind out")
    shared: list[str] = []

    def other(of: DataSettings, most: int, is_test: bool = False) -> Mask:
        """The rows of another file that are evaluated on."""
        nonlocal rejected
        found = Notes()
        keys, asking, more = prompts(of, found, is_test)
        for line in found.lines:
            notes.say(line)
        mask = np.zeros(len(keys), bool)
        mask[asking] = sample(int(asking.sum()), most, seed)
        rejected = Rejections(itertools.chain(rejected, more))
        both = len(np.intersect1d(keys[mask], asked[train]))
        if both:
            shared.append(f"{both} prompts of {of.path} are also trained on: its scores will flatter the adapter")
        return mask

    def draw(part: float, most: int, seed: int) -> Mask:
        """Some of the training rows, which are then none any more."""
        nonlocal train
        mask = np.zeros(len(asked), bool)
        mask[train & asking] = split(asked[train & asking], part, most, seed)
        train = train & ~mask
        return mask

    if settings.test_path:
        test = other(_of_test(settings), settings.test_rows, is_test=True)
    elif settings.test:
        test = draw(settings.test, settings.test_rows, seed + 1)
    else:
        test = np.zeros(len(asked), bool)
    if settings.eval_path is None:
        held = draw(settings.held_out, settings.held_out_rows, seed)
    else:
        held = other(_of_eval(settings), settings.held_out_rows)
    return Parts(settings, seed, train, held, test, answers, rejected, notes, shared)


def _of_train(settings: DataSettings) -> DataSettings:
    return settings.model_copy(update={"references": None}) if settings.test_path else settings


def _of_test(settings: DataSettings) -> DataSettings:
    return settings.model_copy(update={"path": settings.test_path})


def _of_eval(settings: DataSettings) -> DataSettings:
    return _of_train(settings).model_copy(update={"path": settings.eval_path})


def load_data(settings: DataSettings, base: Base, seed: int = 0, cache_dir: Path | None = None) -> Dataset:
    """Reads, samples, splits and renders the data for `base`. Raises `DataError` as `read_parts` and `render_parts` do."""
    return render_parts(read_parts(settings, seed), base.tokenizer, base.facts.context_length, cache_dir)


def render_parts(
    parts: Parts, tokenizer: Tokenizer, context: int, cache_dir: Path | None = None, listener: Listener = ignore
) -> Dataset:
    """Renders the data for a base with this tokenizer and `context` (tokens) into the cache, where the next run with the same files,
    settings and tokenizer finds them.

    Raises `DataError` where rows are too long and `too_long` is 'error', none is left, or the end of turn carries no label.
    """
    settings = parts.settings
    max_length = min(settings.max_length or DEFAULT_MAX_LENGTH, context)
    shelf = Shelf(cache_folder(cache_dir), _key(parts, tokenizer, max_length))
    with shelf as folder:
        if folder is not None:
            _render_into(folder, parts, Fitter(tokenizer, max_length, settings.too_long, context), listener)
    facts = read_json(shelf.folder / "facts.json")
    held_out = Rows(shelf.folder / "held_out")
    test = Rows(shelf.folder / "test")
    examples = [
        Example(
            tuple(e.pop("messages")),
            e.pop("completion"),
            tuple(e.pop("references")),
            e.pop("source"),
            e.pop("where"),
            **e,
        )
        for e in facts["examples"]
    ]
    rejected = Rejections(itertools.chain(parts.rejected, (Rejected(*row) for row in facts["rejected"])))
    notices = list(facts["notices"])
    if settings.max_length and settings.max_length > max_length:
        notices.append(f"rows may have {max_length} tokens, the context of this base, not {settings.max_length}")
    notices += parts.shared
    train = Rows(shelf.folder / "train", shelf.temporary)
    return Dataset(train, list(held_out), list(test or held_out), examples, rejected, parts.notes.lines, notices)


def _render_into(folder: Path, parts: Parts, fitter: "Fitter", listener: Listener) -> None:
    settings = parts.settings
    train, held_out, test = (RowsWriter(folder / name) for name in ("train", "held_out", "test"))
    kept: dict[int, list[Example]] = {id(held_out): [], id(test): []}
    total = int(parts.train.sum() + parts.held_out.sum() + parts.test.sum())

    def write(of: DataSettings, into: list[tuple[Mask, RowsWriter]], is_test: bool = False) -> None:
        """The rows of a file that a mask chooses, each to its writer."""
        count = len(into[0][0])
        places = np.zeros(count, np.int8)
        for number, (mask, _) in enumerate(into, 1):
            places[mask] = number
        examples = ((e, int(place)) for e, place in zip(_again(of, count, is_test), places, strict=True) if place)
        for row, example, place in fitter.fit_marked(examples):
            if fitter.tokenizer.task.writes_text:
                _check_labels(row, example, fitter.tokenizer)
            writer = into[place - 1][1]
            writer.add(row)
            if writer is not train:
                kept[id(writer)].append(example)
            done = train.count + held_out.count + test.count
            if done % _NEWS == 0:
                listener(Progress("rows prepared", done, total))

    own = [(parts.train, train)]
    if settings.eval_path is None:
        own.append((parts.held_out, held_out))
    if settings.test_path is None:
        own.append((parts.test, test))
    write(_of_train(settings), own)
    if settings.eval_path is not None:
        write(_of_eval(settings), [(parts.held_out, held_out)])
    if settings.test_path is not None:
        write(_of_test(settings), [(parts.test, test)], is_test=True)
    for writer in (train, held_out, test):
        writer.close()
    fitter.judge(settings, total)
    needed = [("training", train), ("held-out", held_out), *([("test", test)] if parts.test.any() else [])]
    for what, rows in needed:
        if not rows.count:
            every = Rejections(itertools.chain(parts.rejected, fitter.rejected))
            raise DataError([f"{settings.path}: no {what} row is left", *every.lines()], "give more or shorter rows")
    facts = {
        "notices": fitter.notices(),
        "rejected": [[row.location, row.reason] for row in fitter.rejected],
        "examples": [_stored(example) for example in kept[id(test)] or kept[id(held_out)]],
    }
    write_json(folder / "facts.json", facts)


def _stored(example: Example) -> dict[str, Any]:
    values = asdict(example)
    return {"where": values.pop("location"), **values}


def _again(settings: DataSettings, count: int, is_test: bool) -> Iterator[Example]:
    """The usable rows, a second time. Raises `DataError` where there are not as many as the first time."""
    number = 0
    for example in _usable(settings, Notes(), Rejections(), needs_completion=not is_test):
        number += 1
        if number > count:
            break
        yield example.answered() if is_test else example
    if number != count:
        raise DataError(f"{settings.path} was changed while it was read", "begin again")


def find_examples(settings: DataSettings, places: Collection[str]) -> list[Example]:
    """The examples of the training file that stand at the given places (`Row.where`)."""
    return [example for example in _usable(_of_train(settings), Notes(), Rejections()) if example.location in places]


def trained_on(parts: Parts) -> Iterator[Example]:
    """The rows that are trained on, read again."""
    return itertools.compress(_again(_of_train(parts.settings), len(parts.train), False), parts.train)


def characters(parts: Parts) -> list[tuple[int, int]]:
    """Of each row that is trained on: the characters that are read, and those of the answer."""
    return [
        (sum(len(message["content"]) for message in example.messages), len(example.completion or ""))
        for example in trained_on(parts)
    ]


def _key(parts: Parts, tokenizer: Tokenizer, max_length: int) -> str | None:
    """Equal for data that are rendered alike; None where that cannot be known without rendering them."""
    settings = parts.settings
    paths = [
        path for path in (settings.path, settings.target, settings.eval_path, settings.test_path) if path is not None
    ]
    if any(is_hub_id(path) for path in paths):
        return None
    decides = [
        __version__, [fingerprint(path) for path in paths], settings.model_dump(mode="json"), parts.seed, max_length,
        tokenizer.hash(), tokenizer.template_hash(), sorted(tokenizer.stop_ids), tokenizer.inner.eos_token_id,
        tokenizer.turn_end, tokenizer.classes,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]


class Fitter:
    """Renders examples and deals with those longer than `max_length`, of a base that could read `context` tokens."""

    def __init__(self, tokenizer: Tokenizer, max_length: int, too_long: str, context: int = 0) -> None:
        self.tokenizer, self.max_length, self.too_long, self.context = tokenizer, max_length, too_long, context
        self.rejected = Rejections()
        self.long = self.longest = 0
        self.cut = self.divided = 0

    def fit(self, examples: Iterable[Example]) -> list[tuple[Row, Example]]:
        """The rows of those that can be used, with the examples as they were cut."""
        return [(row, example) for row, example, _ in self.fit_marked((example, 0) for example in examples)]

    def fit_marked(self, examples: Iterable[tuple[Example, int]]) -> Iterator[tuple[Row, Example, int]]:
        """`fit` of examples that carry a mark, as a stream."""
        marked = iter(examples)
        batches = iter(lambda: list(itertools.islice(marked, _BATCH)), [])
        for batch, rendered in render_batches(self.tokenizer, batches):
            for (example, mark), row in zip(batch, rendered, strict=True):
                try:
                    pairs = self._fitted(example, row)
                except Unusable as reason:
                    self.rejected.add(Rejected(example.location, str(reason)))
                    continue
                for pair in pairs:
                    yield *pair, mark

    def _fitted(self, example: Example, row: Row | Unusable) -> list[tuple[Row, Example]]:
        if isinstance(row, Unusable):
            raise row
        length = len(row.input_ids)
        if length <= self.max_length:
            return [(row, example)]
        if not example.messages:
            self.divided += 1
            parts = divide(self.tokenizer, example, self.max_length)
            return [(render(self.tokenizer, part), part) for part in parts]
        self.long, self.longest = self.long + 1, max(self.longest, length)
        if self.too_long == "error":
            return []
        if self.too_long == "drop":
            raise Unusable(f"longer than {self.max_length} tokens (dropped, as asked)")
        whole = example
        excess = length - self.max_length
        # Cutting text and tokenising it anew may win a token or two less than was cut.
        while len(row.input_ids) > self.max_length:
            example = shorten(self.tokenizer, whole, excess)
            row = render(self.tokenizer, example)
            excess += max(1, len(row.input_ids) - self.max_length)
        self.cut += 1
        return [(row, example)]

    def judge(self, settings: DataSettings, total: int) -> None:
        if self.long and self.too_long == "error":
            raised = "raise --data.max_length, or " if self.max_length < self.context else ""
            raise DataError(
                f"{settings.path}: {self.long} of {total} rows are longer than {self.max_length} tokens "
                f"(the longest has {self.longest})",
                f"{raised}choose --data.too_long cut (shortens prompts, keeps answers) or drop",
            )

    def notices(self) -> list[str]:
        said = [f"{self.cut} prompts were cut to fit {self.max_length} tokens"] if self.cut else []
        if self.divided:
            said.append(f"{self.divided} texts were divided into rows of at most {self.max_length} tokens")
        return said


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
