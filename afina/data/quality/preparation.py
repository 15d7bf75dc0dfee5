"""Cleaned and split data: copies removed, personal data masked, groups of near copies kept in one split."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from afina.core.config import Settings, setting
from afina.core.errors import DataError
from afina.data.mapping import Example
from afina.data.quality.duplicates import Seen, Sketches, digest
from afina.data.quality.signals import damaged, masked, repaired
from afina.models.tokenizer import Message

Order = Literal["random", "stratified", "time"]


class PrepareSettings(Settings):
    """What `afina data prepare` does, in this order: repair, mask, remove copies, split."""

    repair: bool = False
    """Repair texts that were read in a wrong encoding (mojibake)."""
    mask: bool = False
    """Replace personal data by [E-MAIL], [TELEPHONE], [CARD] and [CPF]."""
    keep_copies: bool = setting(False, "--keep_copies")
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
    split_near: bool = setting(False, "--split_near")
    """Let rows with nearly the same prompt fall into both splits; by default they stay together."""
    seed: int = setting(0, ge=0)
    """Decides the split, whatever the order of the rows."""


@dataclass(frozen=True)
class Prepared:
    """The splits, and what was done to how many rows."""

    train: list[Example]
    test: list[Example]
    done: dict[str, int]


def prepare(examples: Sequence[Example], settings: PrepareSettings, times: Sequence[str] = ()) -> Prepared:
    """`times` orders the examples where the split is by time. Raises `DataError` where nothing can be split."""
    done: Counter[str] = Counter()
    kept: list[Example] = []
    kept_times: list[str] = []
    seen = set()
    for i, example in enumerate(examples):
        if settings.repair:
            example, changed = _changed(example, lambda text: (repaired(text) or text) if damaged(text) else text)
            done["repaired"] += changed
        if settings.mask:
            example, changed = _changed(example, masked)
            done["masked"] += changed
        key = (example.prompt_key, json.dumps(example.answer, ensure_ascii=False))
        if key in seen and not settings.keep_copies:
            done["copies taken out"] += 1
            continue
        seen.add(key)
        kept.append(example)
        kept_times.append(times[i] if times else "")
    wanted = round(settings.test * len(kept))
    if not wanted:
        return Prepared(kept, [], dict(done))
    held = _by_time(kept_times, wanted) if settings.split == "time" else _drawn(kept, wanted, settings)
    if not held and settings.split == "stratified":
        raise DataError("no answer is frequent enough to be in both splits", "use --split random")
    if len(held) == len(kept) or not held:
        raise DataError(
            "all rows have nearly the same prompt, so there can be no test split",
            "give more varied rows, or --split_near",
        )
    return Prepared(
        [e for i, e in enumerate(kept) if i not in held],
        [e for i, e in enumerate(kept) if i in held],
        {what: n for what, n in done.items() if n},
    )


def _changed(example: Example, change: Callable[[str], str]) -> tuple[Example, bool]:
    messages = tuple(_changed_message(message, change) for message in example.messages)
    completion = None if example.completion is None else change(example.completion)
    references = tuple(map(change, example.references))
    new = replace(
        example,
        messages=messages,
        completion=completion,
        references=references,
        source=change(example.source),
        extra=_changed_message(example.extra, change),
    )
    return new, new != example


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


def _by_time(times: Sequence[str], wanted: int) -> set[int]:
    """The last rows; those of one moment stay together."""

    def key(value: str) -> tuple[int, Any]:
        try:
            return 0, float(value)
        except ValueError:
            return 1, value

    order = sorted(range(len(times)), key=lambda i: key(times[i]))
    first = key(times[order[-wanted]])
    return {i for i in order if key(times[i]) >= first}


def _drawn(examples: Sequence[Example], wanted: int, settings: PrepareSettings) -> set[int]:
    """Whole groups, drawn by seed and content alone."""
    groups = _groups(examples, not settings.split_near)
    drawn = sorted(groups, key=lambda group: _rank(examples, group, settings.seed))
    if settings.split == "random":
        return _fill(drawn, wanted)
    strata: dict[str | None, list[list[int]]] = {}
    for group in drawn:
        strata.setdefault(examples[group[0]].completion, []).append(group)
    share = wanted / len(examples)
    held: set[int] = set()
    for each in strata.values():
        held |= _fill(each, round(share * sum(map(len, each))))
    return held


def _fill(groups: Sequence[list[int]], wanted: int) -> set[int]:
    held: set[int] = set()
    for group in groups:
        if len(held) + len(group) <= wanted:
            held |= set(group)
    if not held and wanted and len(groups) > 1:
        held = set(sorted(groups, key=len)[0])
    return held


def _rank(examples: Sequence[Example], group: list[int], seed: int) -> int:
    """A number that the seed and the group's texts decide."""
    return digest(f"{seed} {min(examples[i].prompt_key for i in group)}")


def _groups(examples: Sequence[Example], near: bool) -> list[list[int]]:
    """Rows with the same prompt, or nearly so, directly or through others."""
    parents = list(range(len(examples)))

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = parents[parents[i]]
            i = parents[i]
        return i

    prompts, sketches = Seen(), Sketches()
    for example in examples:
        prompts.add(example.prompt_key)
        if near:
            sketches.add(example.source)
    for group in prompts.groups():
        for other in group[1:]:
            parents[root(other)] = root(group[0])
    for a, b in sketches.pairs() if near else ():
        parents[root(b)] = root(a)
    groups: dict[int, list[int]] = {}
    for i in range(len(examples)):
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())


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


def rows_of(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """The examples as rows of one form, to be read again without any flag: prompts, or messages where one needs
    them."""
    plain = all(
        len(e.messages) == 1 and e.messages[0]["role"] == "user" and not e.tools and not e.extra
        for e in examples
        if e.messages
    )
    return [_row_of(example, plain) for example in examples]


def _written(message: Message) -> Message:
    """With the arguments of calls as JSON, as OpenAI's files have them: in a table they are of one type."""
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(arguments, ensure_ascii=False)}}
        if isinstance(arguments := call["function"]["arguments"], dict)
        else call
        for call in message.get("tool_calls", ())
    ]
    return {**message, **({"tool_calls": calls} if calls else {})}


def _row_of(example: Example, plain: bool) -> dict[str, Any]:
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
