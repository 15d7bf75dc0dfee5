"""From a file of examples to what is trained and evaluated on, with an account of every row."""

from dataclasses import dataclass

from afina.base.load import Base
from afina.core.errors import DataError
from afina.data.mapping import Example, Unusable
from afina.data.mapping import examples as map_examples
from afina.data.rows import Notes, Reasons, Rejected
from afina.data.settings import DataSettings
from afina.data.split import sample, split
from afina.data.template import Row, render, shorten

DEFAULT_MAX_LENGTH = 1024


@dataclass(frozen=True)
class Dataset:
    """Training rows; held-out rows with their examples (for generation); all completions; rejected rows with reasons; what was
    found out about the files; what to warn of."""

    train: list[Row]
    held_out: list[Row]
    held_out_examples: list[Example]
    completions: list[str]
    rejected: list[Rejected]
    found: list[str]
    notices: list[str]

    @property
    def tokens(self) -> int:
        return sum(len(row.input_ids) for row in self.train)

    @property
    def labelled(self) -> int:
        return sum(row.labelled for row in self.train)


def read_examples(settings: DataSettings, *, needs_completion: bool) -> tuple[list[Example], list[Rejected], Notes]:
    """Every usable example of the file, every other row with its reason, and what was found out about the file.

    Raises `DataError` where none is usable.
    """
    notes = Notes()
    examples: list[Example] = []
    rejected: list[Rejected] = []
    for row in map_examples(settings, notes, needs_completion=needs_completion):
        (rejected if isinstance(row, Rejected) else examples).append(row)  # type: ignore[arg-type]
    if not examples and not rejected:
        raise DataError(f"data {settings.path} is empty: it holds no example", "give a file with at least one")
    if not examples:
        raise DataError([f"{settings.path}: no row can be used", *summary(rejected)], "mend the file or the templates")
    return examples, rejected, notes


def summary(rejected: list[Rejected]) -> list[str]:
    """The reasons of rejection, most frequent first, each with its count and its first places."""
    reasons = Reasons()
    for row in rejected:
        reasons.add(row)
    return reasons.lines()


@dataclass(frozen=True)
class Parts:
    """Examples to train on and held-out ones, before any model is known."""

    train: list[Example]
    held_out: list[Example]
    rejected: list[Rejected]
    notes: Notes
    shared_prompts: int

    def resolved(self, settings: DataSettings) -> DataSettings:
        """The settings with the templates of the layout that was recognised, so that they say all of it."""
        layout = self.notes.layout
        if layout is None or layout.prompt is None:
            return settings
        return settings.model_copy(update={"prompt": layout.prompt, "completion": layout.completion})


def read_parts(settings: DataSettings, seed: int) -> Parts:
    """Reads, samples and splits. Raises `DataError` where a file is unreadable or no row is usable."""
    examples, rejected, notes = read_examples(settings, needs_completion=True)
    train = sample(examples, settings.limit, seed)
    if settings.eval_path is None:
        return Parts(*split(train, settings.held_out, settings.held_out_rows, seed), rejected, notes, 0)
    held, more, other = read_examples(settings.model_copy(update={"path": settings.eval_path}), needs_completion=True)
    for line in other.lines:
        notes.say(line)
    held = sample(held, settings.held_out_rows, seed)
    shared = len({e.prompt_key for e in held} & {e.prompt_key for e in train})
    return Parts(train, held, rejected + more, notes, shared)


def load_data(settings: DataSettings, base: Base, seed: int = 0) -> Dataset:
    """Reads, samples, splits and renders the data for `base`. Raises `DataError` as `read_parts` and `render_parts` do."""
    return render_parts(read_parts(settings, seed), settings, base)


def render_parts(parts: Parts, settings: DataSettings, base: Base) -> Dataset:
    """Renders the data for `base`.

    Raises `DataError` where rows are too long and `too_long` is 'error', none is left, or the end of turn carries no label.
    """
    max_length = min(settings.max_length or DEFAULT_MAX_LENGTH, base.facts.context_length)
    fitter = Fitter(base, max_length, settings.too_long)
    train, held_out = fitter.fit(parts.train), fitter.fit(parts.held_out)
    fitter.judge(settings, len(parts.train) + len(parts.held_out))
    rejected = parts.rejected + fitter.rejected
    if not train or not held_out:
        what = "training" if not train else "held-out"
        raise DataError([f"{settings.path}: no {what} row is left", *summary(rejected)], "give more or shorter rows")
    _check_labels([row for row, _ in train], base)
    notices = fitter.notices()
    if settings.max_length and settings.max_length > max_length:
        notices.append(f"rows may have {max_length} tokens, the context of this base, not {settings.max_length}")
    if parts.shared_prompts:
        notices.append(
            f"{parts.shared_prompts} prompts of {settings.eval_path} are also trained on: its scores will flatter the adapter"
        )
    return Dataset(
        train=[row for row, _ in train],
        held_out=[row for row, _ in held_out],
        held_out_examples=[example for _, example in held_out],
        completions=[example.completion or "" for _, example in train + held_out],
        rejected=rejected,
        found=parts.notes.lines,
        notices=notices,
    )


class Fitter:
    """Renders examples and deals with those longer than `max_length`."""

    def __init__(self, base: Base, max_length: int, too_long: str) -> None:
        self.base, self.max_length, self.too_long = base, max_length, too_long
        self.rejected: list[Rejected] = []
        self.long: list[int] = []
        self.cut = 0

    def fit(self, examples: list[Example]) -> list[tuple[Row, Example]]:
        fitted = []
        for example in examples:
            try:
                pair = self._one(example)
            except Unusable as reason:
                self.rejected.append(Rejected(example.where, str(reason)))
                continue
            if pair:
                fitted.append(pair)
        return fitted

    def _one(self, example: Example) -> tuple[Row, Example] | None:
        row = render(self.base.tokenizer, example)
        length = len(row.input_ids)
        if length <= self.max_length:
            return row, example
        self.long.append(length)
        if self.too_long == "error":
            return None
        if self.too_long == "drop":
            raise Unusable(f"longer than {self.max_length} tokens (dropped, as asked)")
        whole = example
        excess = length - self.max_length
        # Cutting text and tokenising it anew may win a token or two less than was cut.
        while len(row.input_ids) > self.max_length:
            example = shorten(self.base.tokenizer, whole, excess)
            row = render(self.base.tokenizer, example)
            excess += max(1, len(row.input_ids) - self.max_length)
        self.cut += 1
        return row, example

    def judge(self, settings: DataSettings, total: int) -> None:
        if self.long and self.too_long == "error":
            raised = "raise --data.max_length, or " if self.max_length < self.base.facts.context_length else ""
            raise DataError(
                f"{settings.path}: {len(self.long)} of {total} rows are longer than {self.max_length} tokens "
                f"(the longest has {max(self.long)})",
                f"{raised}choose --data.too_long cut (shortens prompts, keeps answers) or drop",
            )

    def notices(self) -> list[str]:
        return [f"{self.cut} prompts were cut to fit {self.max_length} tokens"] if self.cut else []


def _check_labels(rows: list[Row], base: Base) -> None:
    """Every row must teach something, and teach the model to stop."""
    for row in rows:
        if not row.labelled:
            raise DataError(
                f"{row.where}: no token of it would be learned", "check the completion and the chat template"
            )
        if not base.tokenizer.classes and row.labels[-1] not in base.tokenizer.stop_ids:
            raise DataError(
                f"{row.where}: the end of the answer is not learned, so the model would never stop",
                "choose a base whose chat template ends turns with a special token",
            )
