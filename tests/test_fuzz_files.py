"""Two hundred files that nobody planned, of every kind that is read. The long form is benchmarks/fuzz.py."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from fuzz import attempt, case
from fuzz_kinds import all_kinds


def test_any_file_is_read_or_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kinds = all_kinds(tmp_path / "valid")
    ends = {}
    for number in range(200):
        kind = kinds[number % len(kinds)]
        ends[f"{kind.name} {number}"] = attempt(kind, case(kind, number, 7), tmp_path / kind.name)
    assert {name: end for name, end in ends.items() if end not in ("read", "refused")} == {}
    assert {"read", "refused"} == set(ends.values())
    assert "Traceback" not in capfd.readouterr().err


def test_valid_files_are_read(tmp_path: Path) -> None:
    for kind in all_kinds(tmp_path / "valid"):
        assert attempt(kind, (kind.folder / kind.target).read_bytes(), tmp_path / kind.name) == "read", kind.name
