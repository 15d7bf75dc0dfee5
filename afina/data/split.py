"""Sampling and the held-out part."""

import random
from collections.abc import Sequence
from typing import TypeVar

from afina.core.errors import DataError
from afina.data.mapping import Example

T = TypeVar("T")


def sample(rows: Sequence[T], limit: int | None, seed: int) -> list[T]:
    """`limit` of the rows by `seed`, in their order; all of them where there are no more."""
    if limit is None or limit >= len(rows):
        return list(rows)
    chosen = sorted(random.Random(seed).sample(range(len(rows)), limit))
    return [rows[i] for i in chosen]


def split(examples: list[Example], part: float, most: int, seed: int) -> tuple[list[Example], list[Example]]:
    """(train, held out): whole groups of identical prompt, drawn by `seed` until `part` of the rows, at most `most`.

    Raises `DataError` where fewer than two different prompts are there to divide.
    """
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.prompt_key, []).append(example)
    if len(groups) < 2:
        raise DataError(
            f"only {len(groups)} different prompt in {len(examples)} rows: nothing can be held out to evaluate on",
            "give more examples, or a held-out file with --eval-data",
        )
    wanted = min(most, max(1, round(len(examples) * part)))
    keys = sorted(groups)
    random.Random(seed).shuffle(keys)
    held: set[str] = set()
    count = 0
    for key in keys[:-1]:
        if count >= wanted:
            break
        if not held or count + len(groups[key]) <= wanted:
            held.add(key)
            count += len(groups[key])
    train = [e for e in examples if e.prompt_key not in held]
    return train, [e for e in examples if e.prompt_key in held]
