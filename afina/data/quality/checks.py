"""What a careful reader would find in a file of examples, in one pass and a fixed number of bytes per row."""

import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from afina.core.config import changed
from afina.core.errors import Unmapped, counted
from afina.core.events import Listener, ignore
from afina.data.conversation import Remarks
from afina.data.mapping import Example, Unusable, map_examples, texts_of
from afina.data.parts import part_words, parted
from afina.data.quality.duplicates import Seen, Sketches, leaked
from afina.data.quality.signals import damaged, language, personal, repaired
from afina.data.read import OpenFiles, read
from afina.data.rows import Locations, Notes, Rejected, Rejections
from afina.data.settings import DataSettings
from afina.data.template import render
from afina.models.tokenizer import Tokenizer

Severity = Literal["error", "warning", "note"]
_SHOWN = 5
_SAMPLES = 3
_MOST_LABELS = 200  # different answers that are counted one by one
_FEW_ROWS = 50
_PERSONAL = {"e-mail": "an e-mail address", "CPF": "a CPF", "card": "a card number", "telephone": "a telephone number"}
_WORDS = re.compile(r"\w+")


@dataclass(frozen=True)
class DataFinding:
    """One finding: an `error` prevents training, a `warning` deserves a look. `count` rows, the first of them by
    location."""

    code: str
    severity: Severity
    text: str
    count: int = 0
    rows: list[str] = field(default_factory=list)


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


class _Few:
    """A count, and the first locations."""

    def __init__(self) -> None:
        self.count, self.rows = 0, list[str]()

    def add(self, location: str) -> None:
        self.count += 1
        if len(self.rows) < _SHOWN:
            self.rows.append(location)


class Checker:
    """Gathers statistics of rows as they pass, in a fixed number of bytes per row; of the first `most` where that is
    given.

    `tokenizer` is the base's: without it lengths are not checked.
    """

    def __init__(self, tokenizer: Tokenizer | None = None, max_length: int = 1024, most: int | None = None) -> None:
        self.tokenizer, self.max_length, self.most = tokenizer, max_length, most
        self.rows_in = 0
        self.rejected, self.remarks = Rejections(), Remarks()
        self.locations = Locations()
        self.prompts, self.rows, self.sketches = Seen(), Seen(), Sketches()
        self.held_out_locations, self.held_out_prompts, self.held_out_sketches = Locations(), Seen(), Sketches()
        self.lengths, self.answers = array("I"), array("I")
        self.labels: Counter[str] = Counter()
        self.languages: Counter[str] = Counter()
        self.few: dict[str, _Few] = {}
        self.words = self.tokens = 0
        self.repair: str | None = None
        self.samples: list[dict[str, str]] = []

    @property
    def kept(self) -> int:
        return len(self.locations)

    def add(self, row: Example | Rejected) -> None:
        """A row that is to be trained on."""
        if self.most is not None and self.rows_in >= self.most:
            return
        self.rows_in += 1
        if isinstance(row, Example):
            try:
                self._look(row)
                return
            except Unusable as error:
                row = Rejected(row.location, str(error))
        self.rejected.add(row)

    def add_held_out(self, row: Example | Rejected) -> None:
        """A row of the file of held-out rows."""
        if isinstance(row, Example):
            self.held_out_locations.add(row.location)
            self.held_out_prompts.add(row.prompt_key)
            self.held_out_sketches.add(row.source)

    @property
    def classes(self) -> bool:
        """Whether the answers are few and repeated."""
        return 2 <= len(self.labels) <= min(_MOST_LABELS, len(self.locations) // 5)

    def _note(self, what: str, location: str) -> None:
        self.few.setdefault(what, _Few()).add(location)

    def _look(self, example: Example) -> None:
        """Raises `Unusable` where the base's template or tokenizer cannot take the row."""
        answer = example.said
        if self.tokenizer is not None:
            for row in render(self.tokenizer, example, self.remarks):
                if len(row.input_ids) > self.max_length:
                    self._note("long" if example.messages else "divided", example.location)
                if row.labelled >= self.max_length and example.messages:
                    self._note("lost", example.location)
                self.lengths.append(len(row.input_ids))
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
        self.languages[language(example.source) or "?"] += 1
        if any(damaged(text) for text in texts):
            self._note("damaged", example.location)
            self.repair = self.repair or next((t for text in texts if damaged(text) and (t := repaired(text))), None)
        for kind in {kind for text in texts for kind, _, _ in personal(text)}:
            self._note(f"personal: {kind}", example.location)

    def findings(self, base: str = "the base", mapped: bool = True) -> list[DataFinding]:
        """What was found in the rows themselves. `base` is what messages call it; `mapped` says that their layout was
        recognised."""
        return list(_judge(self, base, mapped))

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
    notes, checker, files = Notes(doubts=[]), Checker(tokenizer, max_length), OpenFiles(listener=listener)
    unmapped: list[str] = []
    for row in _tolerant(settings, notes, unmapped, files):
        checker.add(row)
    findings = [DataFinding("encoding", "error", text) for text in dict.fromkeys(notes.doubts or ())]
    findings += [DataFinding("mapping", "error", text, checker.rows_in) for text in unmapped]
    findings += checker.findings(base, not unmapped)
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
    return Check(
        path=str(path),
        rows_in=checker.rows_in,
        rows_kept=checker.kept,
        rows_reported=checker.rows_in - checker.kept,
        layout=notes.layout.words() if notes.layout else None,
        notes=[line for line in notes.lines if notes.layout is None or not line.endswith(notes.layout.words())],
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


def _judge(found: Checker, base: str, mapped: bool) -> Iterator[DataFinding]:
    rows_in, kept = found.rows_in, found.kept
    if rows_in == 0:
        yield DataFinding("empty", "error", "the file holds no row")
    elif kept == 0 and mapped:
        yield DataFinding("nothing", "error", "no row can be used", rows_in)
    elif rows_in - kept > 0.1 * rows_in:
        grave: Severity = "error" if kept < 0.5 * rows_in else "warning"
        text = f"{rows_in - kept} of {counted(rows_in, 'row')} cannot be used"
        yield DataFinding("many rejected", grave, text, rows_in - kept)
    if kept == 0:
        return
    yield from _copies(found, kept)
    if kept < _FEW_ROWS:
        text = f"{counted(kept, 'row is')} few: a few hundred teach a style, a thousand a task"
        yield DataFinding("few rows", "warning", text, kept)
    yield from _lengths(found, kept, base)
    for line in found.remarks.lines():
        yield DataFinding("template", "note", line)
    words: dict[str, tuple[Severity, str]] = {
        "one word": ("note", "answers have at most one word: a classification, or answers cut off"),
        "damaged": ("warning", "rows hold characters damaged by a wrong encoding (mojibake)"),
    }
    for code, (severity, text) in words.items():
        if few := found.few.get(code):
            more = f"; one of them should read {found.repair[:60]!r}" if code == "damaged" and found.repair else ""
            if code != "one word" or few.count < kept:
                yield DataFinding(code, severity, f"{few.count} {text}{more}", few.count, few.rows)
    for what, few in found.few.items():
        if what.startswith("personal: "):
            kind = what.removeprefix("personal: ")
            yield DataFinding(
                what,
                "warning",
                f"{counted(few.count, 'row seems')} to hold {_PERSONAL[kind]}: `afina data prepare --mask` hides them",
                few.count,
                few.rows,
            )
    known = {code: n for code, n in found.languages.items() if code != "?"}
    if len(known) > 1 and sorted(known.values())[-2] > 0.05 * sum(known.values()):
        shares = ", ".join(
            f"{code} {n / sum(known.values()):.0%}" for code, n in found.languages.most_common() if code != "?"
        )
        yield DataFinding("languages", "note", f"the prompts are in several languages: {shares}", sum(known.values()))
    if found.classes:
        (most, n), (least, m) = found.labels.most_common()[0], found.labels.most_common()[-1]
        if n > 3 * m:
            text = (
                f"answers are unbalanced: {most[:40]!r} has {counted(n, 'row')}, {least[:40]!r} {m} "
                f"(of {len(found.labels)} distinct ones)"
            )
            yield DataFinding("balance", "note", text, kept)


def _copies(found: Checker, kept: int) -> Iterator[DataFinding]:
    same = list(found.rows.groups())
    if same:
        extra = sum(len(group) - 1 for group in same)
        rows = [found.locations[row] for group in same for row in group[1:]][:_SHOWN]
        text = counted(extra, "row is an exact copy of another", "rows are exact copies of others")
        yield DataFinding("duplicates", "warning", text, extra, rows)
    rows_seen, groups = found.rows.values(), list(found.prompts.groups())
    shared = [group for group in groups if len({int(rows_seen[row]) for row in group}) > 1]
    if kept == 1 or (len(groups) == 1 and len(groups[0]) == kept):
        problem = "there is only one row" if kept == 1 else "all rows ask the same"
        yield DataFinding("one prompt", "error", f"{problem}: nothing can be held out, nothing distinguished", kept)
    if shared:
        count = sum(map(len, shared))
        rows = [found.locations[group[1]] for group in shared][:_SHOWN]
        if found.classes:
            text = f"{counted(len(shared), 'prompt has')} different answers in {counted(count, 'row')}"
            yield DataFinding("conflicts", "warning", text, count, rows)
        else:
            text = (
                f"{counted(count, 'row shares', 'rows share')} their prompt with others that answer it differently "
                f"({counted(len(shared), 'group')}); each group stays in one split"
            )
            yield DataFinding("groups", "note", text, count, rows)
    equal = {row for group in groups for row in group[1:]}
    near = [(a, b) for a, b in found.sketches.pairs() if b not in equal]
    if near:
        rows = [f"{found.locations[b]} like {found.locations[a]}" for a, b in near[:_SHOWN]]
        severity: Severity = "warning" if len(near) > 0.05 * kept else "note"
        has = counted(len(near), "row has")
        text = f"{has} nearly the prompt of another row: a random split would leak from train to test"
        yield DataFinding("near copies", severity, text, len(near), rows)


def _lengths(found: Checker, kept: int, base: str) -> Iterator[DataFinding]:
    if found.tokenizer is None:
        return
    if long := found.few.get("long"):
        text = (
            f"{counted(long.count, 'row is')} longer than {found.max_length} tokens (the "
            f"longest has {max(found.lengths)}): "
            "in training give --data.too_long cut or drop, or a larger --data.max_length if the base takes it"
        )
        yield DataFinding("too long", "error", text, long.count, long.rows)
    if divided := found.few.get("divided"):
        text = (
            f"{counted(divided.count, 'text is')} longer than {found.max_length} tokens and will be divided into rows"
        )
        yield DataFinding("divided", "note", text, divided.count, divided.rows)
    if lost := found.few.get("lost"):
        yield DataFinding(
            "lost answers",
            "error",
            f"{counted(lost.count, 'answer alone is', 'answers alone are')} longer than that and would be truncated",
            lost.count,
            lost.rows,
        )
    if found.words and found.tokens / found.words > 2.5:
        fertility = found.tokens / found.words
        text = (
            f"{base} splits this language into {fertility:.1f} tokens per word: a base that knows it would learn faster"
        )
        yield DataFinding("high_fertility", "warning", text, kept)


def _verdict(errors: list[DataFinding], findings: list[DataFinding], kept: int) -> str:
    if errors:
        return "not ready: " + "; ".join(finding.text for finding in errors[:3])
    warnings = [finding for finding in findings if finding.severity == "warning"]
    if warnings:
        return f"ready, {counted(kept, 'row')}; look first at: " + "; ".join(finding.code for finding in warnings)
    return f"ready: {counted(kept, 'row')}"
