"""Greedy grouping by tokens, the one way in which rows, prompts and lengths are put into batches."""

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def grouped(
    items: Iterable[T], length: Callable[[T], int], max_tokens: int, max_items: int | None = None
) -> list[list[T]]:
    """The items, in their order, in groups of up to `max_tokens` tokens (a longer item goes alone) and `max_items`
    items."""
    groups: list[list[T]] = []
    tokens = 0
    for item in items:
        own = length(item)
        tokens += own
        if not groups or tokens > max_tokens or len(groups[-1]) == max_items:
            groups.append([])
            tokens = own
        groups[-1].append(item)
    return groups
