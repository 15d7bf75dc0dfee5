"""What searches keep is read as it was written, or found again."""

import json
from pathlib import Path
from typing import Any

import pytest

from afina.core.events import Notice
from afina.search.base_trial import BaseTrial
from afina.search.files import Cost, ProofRows, RangeTest, Rates, Repeats, Share, kept

TRIED = {"rate": 1e-3, "loss": None, "rows": 8, "tokens": 90, "seconds": 1.5}
RANGE = {
    "rule": 1e-3, "low": 1e-4, "high": 2e-3, "rates": [], "losses": [], "seconds": 9.5, "full_rows": 500,
    "pace": {"row": 0.1, "look": 0.2, "load": 3.0, "rest": 4.0}, "trial_rows": 100, "proof_seconds": 30.0,
}  # fmt: skip
BASE = {
    "zero_shot": 0.1, "few_shot": None, "adapted": 0.5, "tokens_per_word": 1.5, "bits_per_byte": 2.0, "rows": 48,
    "bits_before": 9.0, "bits_after": 3.5, "bits": [3.0, 4.0], "seconds": 9.0, "revision": None,
}  # fmt: skip
KINDS: list[tuple[Any, dict[str, Any], list[dict[str, Any]]]] = [
    (Share, {"share": 0.3}, [{"share": 0.0}, {"share": 1.5}, {"share": [0.3]}]),
    (ProofRows, {"rows": 100}, [{"rows": 0}, {"rows": 1.5}]),
    (
        Rates,
        {"tried": [TRIED]},
        [{"tried": [TRIED | {"rate": float("nan")}]}, {"tried": {}}, {"tried": [], "rate": -1.0}],
    ),
    (Cost, {"peak_memory_gb": 1, "start_memory_gb": 0.5}, [{"start_memory_gb": "a"}, {"peak_memory_gb": None}]),
    (RangeTest, RANGE, [{"low": 0.0}, {"pace": {}}, {"trial_rows": -1}, {"high": float("inf")}]),
    (Repeats, {"best": [], "defaults": [0.5], "seconds": [2.0]}, [{"best": [[]]}, {"seconds": [-1.0]}]),
    (BaseTrial, BASE, [{"bits": []}, {"adapted": "a"}, {"rows": []}]),
]


@pytest.mark.parametrize(("kind", "good", "changes"), KINDS, ids=[kind.__name__ for kind, *_ in KINDS])
def test_what_was_kept_is_read_or_made_again(
    kind: Any, good: dict[str, Any], changes: list[dict[str, Any]], tmp_path: Path
) -> None:
    path, told = tmp_path / "kept.json", []
    assert kept(kind.read, path, told.append) is None
    assert told == []
    path.write_text(json.dumps(good))
    found = kept(kind.read, path, told.append)
    assert all(getattr(found, name) == value for name, value in good.items() if not isinstance(value, dict | list))
    assert told == []
    bad = [json.dumps(good | change) for change in changes]
    bad += [json.dumps({name: good[name] for name in good if name != absent}) for absent in list(good)[:3]]
    for content in [*bad, "[]", "null", '"x"', "{", ""]:
        path.write_text(content)
        assert kept(kind.read, path, told.append) is None, content
        notice = told.pop()
        assert isinstance(notice, Notice)
        assert notice.warning
        assert "kept.json" in notice.text
        assert notice.text.endswith("it is made again")
