"""The findings of a check: one entry for each thing that a careful reader would say of the rows that passed."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from afina.core.errors import counted

if TYPE_CHECKING:
    from afina.data.quality.checks import Checker

Severity = Literal["error", "warning", "note"]
_SHOWN = 5
_FEW_ROWS = 50
_FEW_OF_LANGUAGE = 2  # rows that may be of another language by mistake
_PERSONAL = {"e-mail": "an e-mail address", "CPF": "a CPF", "card": "a card number", "telephone": "a telephone number"}
_MAYBE = ("none", "-", "?")  # what may be a label where answers are labels
_NO_FIELDS = ("{}", "[]")  # an answer as good as another where answers are JSON
_JOINTS = (";", "|", ",")  # between the labels of a set
_WORDS_OF_LABEL = 3
_SETS = 0.1  # of the rows have more than one label, at least
_DONE = {  # what is said of rows that are too long, by `too_long`
    "error": "give --data.too_long cut or drop, or a larger --data.max_length if the base takes it",
    "cut": "their questions are cut, the answers stay whole",
    "drop": "left out, as asked",
}
_RECUR = 0.5  # of the labels stand in more than one set, at least


@dataclass(frozen=True)
class DataFinding:
    """One finding: an `error` prevents training, a `warning` deserves a look. `count` rows, the first of them by
    location. `facts` are what `text` names, for who says it in other words."""

    code: str
    severity: Severity
    text: str
    count: int = 0
    rows: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def judge(found: "Checker", base: str, mapped: bool) -> Iterator[DataFinding]:
    """What was found in the rows themselves. `base` is what messages call it; `mapped` says that their layout was
    recognised."""
    rows_in, kept = found.rows_in, found.kept
    if rows_in == 0:
        yield DataFinding("empty", "error", "the file holds no row")
    elif kept == 0 and mapped:
        yield DataFinding("nothing", "error", "no row can be used", rows_in)
    elif found.unusable > 0.1 * rows_in:
        grave: Severity = "error" if found.unusable > 0.5 * rows_in else "warning"
        text = f"{found.unusable} of {counted(rows_in, 'row')} cannot be used"
        yield DataFinding("many rejected", grave, text, found.unusable)
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
                facts = {"repaired": found.repair[:60]} if more and found.repair else {}
                yield DataFinding(code, severity, f"{few.count} {text}{more}", few.count, few.rows, facts)
    yield from _personal(found)
    known = {code: n for code, n in found.languages.items() if code != "?"}
    if len(known) > 1 and sorted(known.values())[-2] > max(_FEW_OF_LANGUAGE, 0.05 * sum(known.values())):
        total = sum(known.values())
        shares = {code: n / total for code, n in found.languages.most_common() if code != "?"}
        said = ", ".join(f"{code} {share:.0%}" for code, share in shares.items())
        text = f"the prompts are in several languages: {said}"
        yield DataFinding("languages", "note", text, total, facts={"shares": shares})
    yield from _answers(found, kept)


def _personal(found: "Checker") -> Iterator[DataFinding]:
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


def _answers(found: "Checker", kept: int) -> Iterator[DataFinding]:
    if len(found.labels) == 1 and found.labels.total() == kept > 1 and not found.is_full:
        (answer,) = found.labels
        text = (
            f"all {kept} rows have the same answer, {answer[:40]!r}: there is nothing to tell apart, and nothing to "
            "learn but that: give rows with other answers, or take another column as the answer"
        )
        yield DataFinding("one answer", "error", text, kept, facts={"answer": answer[:40]})
    for what, few in found.few.items():
        if what.startswith("nothing: "):
            word = what.removeprefix("nothing: ")
            meant = word in _NO_FIELDS or (found.classes and word.lower() in _MAYBE)
            grave: Severity = "note" if meant else "warning"
            text = (
                f"{counted(few.count, 'answer is', 'answers are')} {word!r}, learned as it stands: where it means that "
                "there is no answer, delete these rows or empty the cells; where it is a label, leave it"
            )
            yield DataFinding("no answers", grave, text, few.count, few.rows, {"answer": word})
    yield from _sets(found)
    if found.classes:
        (most, n), (least, m) = found.labels.most_common()[0], found.labels.most_common()[-1]
        if n > 3 * m:
            text = (
                f"answers are unbalanced: {most[:40]!r} has {counted(n, 'row')}, {least[:40]!r} {m} "
                f"(of {len(found.labels)} distinct ones)"
            )
            facts = {"most": most[:40], "rows": n, "least": least[:40], "fewest": m, "labels": len(found.labels)}
            yield DataFinding("balance", "note", text, kept, facts=facts)


def _sets(found: "Checker") -> Iterator[DataFinding]:
    """Answers that are several labels in one text, such as 'bio;math': the parts recur in other company."""
    answers = [answer for answer in found.labels if answer.strip()]
    for joint in _JOINTS:
        parts = {answer: [part.strip() for part in answer.split(joint)] for answer in answers}
        several = [answer for answer in answers if len(parts[answer]) > 1]
        labels = Counter(part for each in parts.values() for part in each)
        if (
            sum(found.labels[answer] for answer in several) >= max(2, _SETS * found.labels.total())
            and len(several) > 1
            and all(part and len(part.split()) <= _WORDS_OF_LABEL for part in labels)
            and sum(n > 1 for n in labels.values()) >= _RECUR * len(labels)
            and not all(part.replace(".", "").isdecimal() for part in labels)
        ):
            text = (
                f"answers are sets of {counted(len(labels), 'label')}, joined by {joint!r}, and each of the "
                f"{len(answers)} combinations counts as an answer of its own: write the labels of every row in one "
                "order, or a row for each label if one is to be learned at a time"
            )
            count = sum(found.labels[answer] for answer in several)
            yield DataFinding("label sets", "warning", text, count, facts={"labels": len(labels), "joint": joint})
            return


def _copies(found: "Checker", kept: int) -> Iterator[DataFinding]:
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


def _lengths(found: "Checker", kept: int, base: str) -> Iterator[DataFinding]:
    if found.tokenizer is None:
        return
    if long := found.few.get("long"):
        longest = max(found.long)
        text = (
            f"{counted(long.count, 'row is')} longer than {found.max_length} tokens (the longest has {longest}): "
            f"{_DONE[found.too_long]}"
        )
        facts = {"most": found.max_length, "longest": longest, "tokens": list(found.long[:_SHOWN])}
        facts["done"] = found.too_long
        severity: Severity = "error" if found.too_long == "error" else "note"
        yield DataFinding("too long", severity, text, long.count, long.rows, facts)
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
        yield DataFinding("high_fertility", "warning", text, kept, facts={"pieces": fertility})
