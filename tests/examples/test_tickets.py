"""The embedded examples are what their page says."""

import json
import re
from collections import Counter
from pathlib import Path

import afina

FOLDER = Path(afina.__file__).parent / "examples"
VALUES = {
    "intent": {"refund", "delivery", "defect", "cancel", "billing", "account", "question", "praise"},
    "product": {"headphones", "coffee machine", "robot vacuum", "desk lamp", "smartwatch", "e-reader", "app", "none"},
    "urgency": {"high", "medium", "low"},
    "language": {"en", "pt"},
}


def rows(part: str) -> list[dict]:
    return [json.loads(line) for line in (FOLDER / f"tickets_{part}.jsonl").read_text().splitlines()]


def shingles(text: str) -> set[str]:
    text = re.sub(r"\W+", " ", text.lower())
    return {text[i : i + 5] for i in range(len(text) - 4)}


def test_counts_and_values() -> None:
    train, test = rows("train"), rows("test")
    assert len(train) == 304
    assert len(test) == 84
    for row in train + test:
        assert list(row) == ["message", "ticket"]
        assert list(row["ticket"]) == [*VALUES, "order"]
        assert all(row["ticket"][name] in allowed for name, allowed in VALUES.items())
    for part in (train, test):
        assert Counter(row["ticket"]["language"] for row in part)["en"] == len(part) / 2
        for name in ("intent", "product"):
            assert min(Counter(row["ticket"][name] for row in part).values()) >= 0.07 * len(part)


def test_orders_are_in_the_message() -> None:
    seen = []
    for row in rows("train") + rows("test"):
        order, digits = row["ticket"]["order"], re.sub(r"(?<=\d)[\s.-](?=\d)", "", row["message"])
        if order is None:
            assert not re.search(r"(?<![\d,])\b\d{5}\b", digits)
        else:
            assert re.fullmatch(r"LM-\d{5}", order)
            assert order[3:] in digits
            seen.append(order)
    assert len(seen) == len(set(seen))


def test_no_near_duplicates() -> None:
    found = [shingles(row["message"]) for row in rows("train") + rows("test")]
    for i, a in enumerate(found):
        for b in found[:i]:
            assert len(a & b) / len(a | b) < 0.35
