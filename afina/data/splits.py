"""Sampling and the held-out part."""

import random

import numpy as np

from afina.core.errors import DataError
from afina.data.quality.duplicates import mixed

Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]


def sample(count: int, limit: int | None, seed: int) -> Mask:
    """Which of `count` rows are taken: `limit` of them, by `seed`; all where there are no more."""
    chosen = np.ones(count, bool)
    if limit is not None and limit < count:
        chosen[:] = False
        chosen[random.Random(seed).sample(range(count), limit)] = True
    return chosen


def split(prompts: np.ndarray, part: float, most: int, seed: int) -> Mask:
    """Which rows are held out: whole groups of identical prompt (by digest), drawn by `seed` until `part` of the rows, at most
    `most`, whatever the order of the rows.

    Raises `DataError` where fewer than two different prompts are there to divide.
    """
    distinct, counts = np.unique(prompts, return_counts=True)
    if len(distinct) < 2:
        raise DataError(
            f"only {len(distinct)} different prompt in {len(prompts)} rows: nothing can be held out to evaluate on",
            "give more examples, or a held-out file with --eval-data",
        )
    wanted = min(most, max(1, round(len(prompts) * part)))
    held: list[int] = []
    count = 0
    for group in np.argsort(mixed(distinct, seed), kind="stable")[:-1]:
        if count >= wanted:
            break
        if not held or count + counts[group] <= wanted:
            held.append(group)
            count += int(counts[group])
    return np.isin(prompts, distinct[held])
