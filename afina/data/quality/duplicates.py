"""Rows that say the same, exactly or nearly, in under 200 bytes per row: none of their text is kept.

Near copies are found by MinHash over runs of five bytes (Broder 1997, https://doi.org/10.1109/SEQUEN.1997.666900), in
bands."""

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator

import numpy as np

HASHES, BANDS = 32, 8  # bands of four: rows that share 80 % of their runs meet in one of them with 98 %
ALIKE = 0.75  # estimated share of common runs from which rows are near copies
_RUN = 5
_AT_ONCE = 1 << 14  # rows that are compared with one at a time
_MOST_IN_A_BAND = 50  # rows that meet in one band; more are compared with the first only
_random = np.random.default_rng(0)
_FACTORS = _random.integers(1, 2**63, HASHES, dtype=np.uint64) | np.uint64(1)
_SHIFTS = _random.integers(0, 2**63, HASHES, dtype=np.uint64)
_POWERS = np.array([31**i for i in range(_RUN)], dtype=np.uint64)


def digest(text: str) -> int:
    """64 bits of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def mixed(digests: np.ndarray, seed: int) -> np.ndarray:
    """Numbers that `seed` and each digest decide, as if drawn at random (the finaliser of SplitMix64, Steele et al.
    2014)."""
    with np.errstate(over="ignore"):
        found = digests + np.uint64(digest(str(seed)))
        found = (found ^ (found >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return found ^ (found >> np.uint64(31))


def signature(text: str) -> np.ndarray:
    """HASHES smallest values over the text's runs, regardless of case and spaces."""
    data = np.frombuffer(re.sub(r"\s+", " ", text.lower()).strip().encode("utf-8", "surrogatepass"), np.uint8).astype(
        np.uint64
    )
    if len(data) < _RUN:
        data = np.concatenate([data, np.zeros(_RUN - len(data), np.uint64)])
    with np.errstate(over="ignore"):
        runs = sum((data[i : len(data) - _RUN + 1 + i] * _POWERS[i] for i in range(_RUN)), np.zeros(1, np.uint64))
        runs = np.unique(runs)
        runs = (runs ^ (runs >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (runs[None] * _FACTORS[:, None] + _SHIFTS[:, None]) >> np.uint64(32)
    smallest: np.ndarray = values.min(1).astype(np.uint32)
    return smallest


def leaked(rows: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """Which of `rows` (digests of their prompts) ask what one of those that are `trained` on asks."""
    return np.isin(rows, trained)


class Seen:
    """Digests of rows in their order, eight bytes per row."""

    def __init__(self) -> None:
        self._digests = array("Q")

    def add(self, text: str) -> None:
        self._digests.append(digest(text))

    def values(self) -> np.ndarray:
        return np.frombuffer(self._digests, np.uint64)

    def groups(self) -> Iterator[list[int]]:
        """The numbers of rows that are equal, two or more at a time, in the order of their first."""
        values = self.values()
        groups = _runs(values, np.argsort(values, kind="stable"))
        yield from sorted((group.tolist() for group in groups), key=lambda group: group[0])


class Sketches:
    """Signatures of rows in their order, 128 bytes per row."""

    def __init__(self) -> None:
        self._data = bytearray()

    def add(self, text: str) -> None:
        self._data += signature(text).tobytes()

    def values(self) -> np.ndarray:
        return np.frombuffer(self._data, np.uint32).reshape(-1, HASHES)

    def only(self, rows: np.ndarray) -> "Sketches":
        """The signatures of these rows."""
        found = Sketches()
        found._data = bytearray(self.values()[rows]) if len(rows) < len(self.values()) else self._data
        return found

    def pairs(self, other: "Sketches | None" = None) -> Iterator[tuple[int, int]]:
        """(a, b), a < b, of rows that are near copies; with `other`, a of these rows and b of those. Each b at most
        once."""
        own = self.values()
        every = own if other is None else np.concatenate([own, other.values()])
        first = 0 if other is None else len(own)  # of the rows that are looked for
        width = HASHES // BANDS
        found = np.full(len(every), -1, np.int64)
        for band in range(BANDS):
            keys = np.ascontiguousarray(every[:, band * width : (band + 1) * width]).view(f"V{4 * width}").ravel()
            for group in _runs(keys, np.argsort(keys, kind="stable")):
                for at, a in enumerate(group[:_MOST_IN_A_BAND].tolist()):
                    if other is not None and a >= len(own):
                        break
                    _find_alike(every, a, group[at + 1 :], first, found)
        for b in np.flatnonzero(found >= 0).tolist():
            yield int(found[b]), b - first


def _find_alike(every: np.ndarray, a: int, rows: np.ndarray, first: int, found: np.ndarray) -> None:
    """Writes `a` into `found` for those of `rows` that are near copies of it, and of no row that was looked at
    before."""
    for at in range(0, len(rows), _AT_ONCE):
        part = rows[at : at + _AT_ONCE]
        part = part[(part >= first) & (found[part] < 0)]
        found[part[(every[part] == every[a]).sum(1) >= ALIKE * HASHES]] = a


def _runs(keys: np.ndarray, order: np.ndarray) -> Iterator[np.ndarray]:
    """The numbers of equal keys, two or more at a time; `order` sorts them."""
    ordered = keys[order]
    cuts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    begins, ends = np.concatenate([[0], cuts]), np.concatenate([cuts, [len(order)]])
    for run in np.flatnonzero(ends - begins > 1).tolist():
        yield order[begins[run] : ends[run]]


def grouped_rows(prompts: np.ndarray, near: Iterable[tuple[int, int]]) -> np.ndarray:
    """The number of each row's group: rows of the same prompt (by digest), or nearly so, directly or through others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    order = np.argsort(prompts, kind="stable")
    same = np.flatnonzero(prompts[order][1:] == prompts[order][:-1])
    pairs = np.fromiter(near, np.dtype((np.int64, 2)))
    a, b = np.concatenate([order[same], pairs[:, 0]]), np.concatenate([order[same + 1], pairs[:, 1]])
    edges = coo_array((np.ones(len(a), bool), (a, b)), shape=(len(prompts), len(prompts)))
    groups: np.ndarray = connected_components(edges, directed=False)[1]
    return groups
