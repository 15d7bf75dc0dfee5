"""What a careful reader would find in a file of examples, in one pass and a fixed number of bytes per row."""

import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from afina.core.config import changed
from afina.core.errors import Unmapped, counted
from afina.core.events import Listener, Progress, Ticker, ignore
from afina.data.conversation import Remarks
from afina.data.mapping import Example, Unusable, map_examples, texts_of
from afina.data.parts import part_words, parted
from afina.data.quality.duplicates import Seen, Sketches, leaked
from afina.data.quality.findings import DataFinding, judge
from afina.data.quality.signals import damaged, language, personal, repaired, says_nothing
from afina.data.read import OpenFiles, read
from afina.data.rows import Few, Locations, Notes, Rejected, Rejections
from afina.data.settings import DataSettings
from afina.data.template import render, shorten
from afina.models.tokenizer import Tokenizer

_SHOWN = 5
_SAMPLES = 3
_MOST_LABELS = 200  # different answers that are counted one by one
_WORDS = re.compile(r"\w+")


@dataclass(frozen=True)
class Check:
    """`rows_in` = `rows_kept` + `rows_reported`; `lengths` are tokens of kept rows, `answers` those learned; `samples`
    are the first rows as they are asked and answered."""

    path: str
    rows_in: int
    rows_kept: int
    rows_reported: int
    layout: str | None
    notes: list[str]
    reasons: list[str]
    findings: list[DataFinding]
    verdict: str
    ready: bool
    lengths: list[int]
    answers: list[int]
    samples: list[dict[str, str]]
    labels: dict[str, int]
    languages: dict[str, int]

    def json(self) -> dict[str, Any]:
        """The object of `--json`; lengths as percentiles."""
        found = asdict(self)
        for name in ("lengths", "answers"):
            found[name] = percentiles(found[name])
        return found


def percentiles(values: list[int]) -> dict[str, int]:
    ordered = sorted(values)
    return (
        {f"p{p}": ordered[min(len(ordered) - 1, p * len(ordered) // 100)] for p in (0, 10, 50, 90, 99, 100)}
        if ordered
        else {}
    )


class Checker:
    """Gathers statistics of rows as they pass, in a fixed number of bytes per row; of the first `most` where that is
    given.

    `tokenizer` is the base's: without it lengths are not checked. Rows of more than `max_length` tokens are treated as
    `too_long` says.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None = None,
        max_length: int = 1024,
        most: int | None = None,
        too_long: str = "error",
    ) -> None:
        self.tokenizer, self.max_length, self.most, self.too_long = tokenizer, max_length, most, too_long
        self.rows_in = self.unusable = 0
        self.rejected, self.remarks = Rejections(), Remarks()
        self.locations = Locations()
        self.prompts, self.rows, self.sketches = Seen(), Seen(), Sketches()
        self.held_out_locations, self.held_out_prompts, self.held_out_sketches = Locations(), Seen(), Sketches()
        self.lengths, self.answers, self.long = array("I"), array("I"), array("I")
        self.labels: Counter[str] = Counter()
        self.languages: Counter[str] = Counter()
        self.few: dict[str, Few] = {}
        self.words = self.tokens = 0
        self.repair: str | None = None
        self.samples: list[dict[str, str]] = []

    @property
    def kept(self) -> int:
        return len(self.locations)

    def add(self, row: Example | Rejected) -> None:
        """A row that is to be trained on."""
        if self.is_full:
            return
        self.rows_in += 1
        if isinstance(row, Example):
            try:
                self._look(row)
                return
            except Unusable as error:
                row = Rejected(row.location, str(error))
        self.unusable += row.meant
        self.rejected.add(row)

    def add_held_out(self, row: Example | Rejected) -> None:
        """A row of the file of held-out rows."""
        if isinstance(row, Example):
            self.held_out_locations.add(row.location)
            self.held_out_prompts.add(row.prompt_key)
            self.held_out_sketches.add(row.source)

    @property
    def is_full(self) -> bool:
        """Whether more rows may have come than it looked at."""
        return self.most is not None and self.rows_in >= self.most

    @property
    def classes(self) -> bool:
        """Whether the answers are few and repeated."""
        return 2 <= len(self.labels) <= min(_MOST_LABELS, len(self.locations) // 5)

    def _note(self, what: str, location: str) -> None:
        self.few.setdefault(what, Few()).add(location)

    def _look(self, example: Example) -> None:
        """Raises `Unusable` where the base's template or tokenizer cannot take the row."""
        answer = example.said
        if self.tokenizer is not None:
            rows = render(self.tokenizer, example, self.remarks)
            longest = max((len(row.input_ids) for row in rows), default=0)
            if longest > self.max_length:
                self._look_long(example, longest)
            for row in rows:
                if row.labelled >= self.max_length and example.messages:
                    self._note("lost", example.location)
                cut = self.too_long == "cut" and example.messages
                self.lengths.append(min(len(row.input_ids), self.max_length) if cut else len(row.input_ids))
                self.answers.append(row.labelled)
            self.tokens += len(self.tokenizer.encode(example.source[:2000]))
            self.words += len(_WORDS.findall(example.source[:2000]))
        if len(self.samples) < _SAMPLES:
            asked = str(example.messages[-1]["content"]) if example.messages else ""
            self.samples.append({"where": example.location, "prompt": asked, "completion": answer})
        self.locations.add(example.location)
        self.prompts.add(example.prompt_key)
        self.rows.add(f"{example.prompt_key}\n{example.written}")
        self.sketches.add(example.source)
        texts = [text for message in (*example.messages, example.answer) for text in texts_of(message)]
        if example.messages and len(self.labels) <= _MOST_LABELS:
            self.labels[answer] += 1
        if len(_WORDS.findall(answer)) <= 1 and len(example.messages) > 1:
            self._note("one word", example.location)
        if example.messages and says_nothing(answer):
            self._note(f"nothing: {answer.strip()}", example.location)
        self.languages[language(example.source) or "?"] += 1
        if any(damaged(text) for text in texts):
            self._note("damaged", example.location)
            self.repair = self.repair or next((t for text in texts if damaged(text) and (t := repaired(text))), None)
        for kind in {kind for text in texts for kind, _, _ in personal(text)}:
            self._note(f"personal: {kind}", example.location)

    def _look_long(self, example: Example, size: int) -> None:
        """Raises `Unusable` where a row of `size` tokens is left out, or cannot be cut."""
        if not example.messages:
            self._note("divided", example.location)
            return
        self._note("long", example.location)
        self.long.append(size)
        if self.too_long == "drop":
            raise Unusable(f"longer than {self.max_length} tokens (dropped, as asked)")
        if self.too_long == "cut" and self.tokenizer is not None:
            shorten(self.tokenizer, example, size - self.max_length)

    def findings(self, base: str = "the base", mapped: bool = True) -> list[DataFinding]:
        """What was found in the rows themselves. `base` is what messages call it; `mapped` says that their layout was
        recognised."""
        return list(judge(self, base, mapped))

    def leaks(self) -> Iterator[DataFinding]:
        """Held-out rows with the prompt of one of the rows."""
        same = np.flatnonzero(leaked(self.held_out_prompts.values(), self.prompts.values()))
        if len(same):
            rows = [self.held_out_locations[int(row)] for row in same[:_SHOWN]]
            text = f"{counted(len(same), 'held-out row has')} a prompt that is trained on: scores would be too good"
            yield DataFinding("leaks", "warning", text, len(same), rows)

    def near_leaks(self) -> Iterator[DataFinding]:
        """Held-out rows with nearly the prompt of one of the rows."""
        same = leaked(self.held_out_prompts.values(), self.prompts.values())
        near = [(a, b) for a, b in self.sketches.pairs(self.held_out_sketches) if not same[b]]
        if near:
            rows = [f"{self.held_out_locations[b]} like {self.locations[a]}" for a, b in near[:_SHOWN]]
            copies = counted(len(near), "held-out row is a near copy", "held-out rows are near copies")
            text = f"{copies} of trained ones"
            yield DataFinding("near leaks", "warning", text, len(near), rows)


def check(
    settings: DataSettings,
    tokenizer: Tokenizer | None = None,
    max_length: int = 1024,
    base: str = "the base",
    listener: Listener = ignore,
) -> Check:
    """Reads the file and says what it found, also where no layout is recognised (then every row is reported).

    `tokenizer` is the base's: without it lengths are not checked. With `settings.eval_path` rows that both files hold
    are found too, and of a set of files the parts are. Raises `DataError` where a file cannot be decoded."""
    path, settings = settings.path, parted(settings)
    notes, files = Notes(doubts=[]), OpenFiles(listener=listener)
    checker = Checker(tokenizer, max_length, too_long=settings.too_long)
    unmapped, counter = list[str](), Ticker(listener)
    for row in _tolerant(settings, notes, unmapped, files):
        checker.add(row)
        counter("rows looked at", checker.rows_in)
    listener(Progress("rows compared", 0, 0))
    findings = [DataFinding(code, "error", text) for code, text in dict.fromkeys(notes.doubts or ())]
    findings += [DataFinding("mapping", "error", text, checker.rows_in) for text in unmapped]
    findings += checker.findings(base, not unmapped)
    findings += [DataFinding(code, "warning", str(flaw), flaw.count, flaw.rows) for code, flaw in notes.flaws]
    findings += [DataFinding(each.code, "note", each.line, each.count, [*each.rows], each.facts) for each in notes.told]
    others = [each for each in (settings.eval_path, settings.test_path) if each is not None]
    for other in others:
        asked = changed(settings, {"path": other, "eval_path": None, "test_path": None})
        found = Notes(doubts=notes.doubts)
        for row in map_examples(asked, found, needs_completion=False, files=files):
            checker.add_held_out(row)
        notes.say(*found.lines)
    findings += [*checker.leaks(), *checker.near_leaks()] if others else []
    notes.say(*part_words(settings))
    errors = [finding for finding in findings if finding.severity == "error"]
    few = len(checker.labels) <= _MOST_LABELS and len(checker.labels) <= max(2, checker.kept // 5)
    layout = notes.layout.words() if notes.layout else None
    found_elsewhere = {str(flaw) for _, flaw in notes.flaws} | {told.line for told in notes.told}
    return Check(
        path=str(path),
        rows_in=checker.rows_in,
        rows_kept=checker.kept,
        rows_reported=checker.rows_in - checker.kept,
        layout=layout,
        notes=[line for line in notes.lines if line not in found_elsewhere and not line.endswith(layout or "\n")],
        reasons=checker.rejected.lines(),
        findings=findings,
        verdict=_verdict(errors, findings, checker.kept),
        ready=not errors,
        lengths=checker.lengths.tolist(),
        answers=checker.answers.tolist(),
        samples=checker.samples,
        labels=dict(checker.labels.most_common()) if few else {},
        languages=dict(checker.languages.most_common()),
    )


def _tolerant(
    settings: DataSettings, notes: Notes, unmapped: list[str], files: OpenFiles
) -> Iterator[Example | Rejected]:
    """Examples; where the columns do not say what is the prompt, that goes into `unmapped`, and every row is reported
    for it."""
    try:
        yield from map_examples(settings, notes, needs_completion=settings.references is None, files=files)
    except Unmapped as error:
        notes.clear()
        unmapped.append(re.sub(r"\s+", " ", f"{error.summary} → {error.remedy}"))
        for row in read(settings, notes, files):  # raises again where the file itself is unreadable
            yield row if isinstance(row, Rejected) else Rejected(row.location, "no layout is known for its columns")


def _verdict(errors: list[DataFinding], findings: list[DataFinding], kept: int) -> str:
    if errors:
        return "not ready: " + "; ".join(finding.text for finding in errors[:3])
    warnings = [finding for finding in findings if finding.severity == "warning"]
    if warnings:
        return f"ready, {counted(kept, 'row')}; look first at: " + "; ".join(finding.code for finding in warnings)
    return f"ready: {counted(kept, 'row')}"
