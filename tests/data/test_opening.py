"""A data file is opened once for a training, and read as often as it must be."""

import gzip
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import write_rows

import afina.data.files.file as files
from afina.core.errors import DataError
from afina.data.files import File
from afina.data.load import render_splits
from afina.data.quality.checks import Checker
from afina.data.read import OpenFiles
from afina.data.settings import DataSettings
from afina.data.splits import Splits, read_splits
from afina.models.load import Base

_counts: list[Counter[str]] = []  # those that are running; an audit hook cannot be removed


def _count(event: str, arguments: tuple) -> None:
    if event == "open" and _counts:
        for counts in _counts:
            counts[str(arguments[0])] += 1


sys.addaudithook(_count)


@contextmanager
def opens() -> Iterator[Counter[str]]:
    counts: Counter[str] = Counter()
    _counts.append(counts)
    try:
        yield counts
    finally:
        _counts.remove(counts)


def prepare(settings: DataSettings, base: Base, cache: Path) -> Splits:
    """All that a training does with its data: split and checked, then rendered."""
    splits = read_splits(settings, 0, Checker())
    render_splits(splits.resolved(), base.tokenizer, 512, cache)
    return splits


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "txt", "jsonl.gz"])
def test_a_training_reads_its_data_twice_and_once_where_rows_are_cached(
    suffix: str, tiny: Base, tmp_path: Path
) -> None:
    said = [f"ação {hashlib.sha256(bytes([i])).hexdigest()}" for i in range(40)]
    rows = [{"text": text} for text in said]
    path = tmp_path / f"data.{suffix}"
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    texts = {
        "jsonl": lines, "jsonl.gz": lines, "json": json.dumps(rows),
        "csv": "\n".join(["text", *said]),
        "txt": "\n\n".join(said),
    }  # fmt: skip
    path.write_bytes(gzip.compress(texts[suffix].encode()) if suffix.endswith("gz") else texts[suffix].encode())
    with opens() as counts:
        prepare(DataSettings(path=path), tiny, tmp_path / "cache")
    assert counts[str(path)] == 3  # its first bytes, by which the format is recognised; to decide; to render
    with opens() as counts:
        prepare(DataSettings(path=path), tiny, tmp_path / "cache")
    assert counts[str(path)] == 2


def test_files_of_held_out_and_test_rows_too(tiny: Base, tmp_path: Path) -> None:
    names = ("path", "eval_path", "test_path")
    paths = {
        name: write_rows(
            tmp_path / f"{name}.jsonl", [{"prompt": f"{name} {i}", "completion": "x" * 99} for i in range(9)]
        )
        for name in names
    }
    with opens() as counts:
        splits = prepare(DataSettings(**paths), tiny, tmp_path / "cache")
    assert [counts[str(path)] for path in paths.values()] == [3, 3, 3]
    assert [int(mask.sum()) for mask in (splits.train, splits.held_out, splits.test)] == [9, 9, 9]


def read_text(file: File) -> str:
    with file.text() as text:
        return text.read()


LOOKS = (lambda file: file.sha256, lambda file: file.encoding.name, read_text)


@pytest.mark.parametrize("in_memory", [0, 1 << 20])
def test_hash_and_encoding_are_those_of_the_file_whatever_its_size(
    in_memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_IN_MEMORY", in_memory)
    for name, content in (("a.txt", "olá\n".encode("cp1252")), ("b.txt.gz", gzip.compress("olá\n".encode()))):
        path = tmp_path / name
        path.write_bytes(content)
        for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
            file = File(path)
            found = [look(file) for look in (LOOKS[i] for i in order)]
            sha256, encoding, text = (found[order.index(i)] for i in range(3))
            assert sha256 == hashlib.sha256(content).hexdigest()
            assert (encoding, text) == ("cp1252" if name == "a.txt" else "utf-8", "olá\n")


def test_a_file_that_changes_between_two_passes(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "t.jsonl", [{"prompt": f"q {i}", "completion": "x"} for i in range(9)])
    splits = read_splits(DataSettings(path=path), 0)
    write_rows(path, [{"prompt": f"other {i}", "completion": "x"} for i in range(9)])
    with pytest.raises(DataError, match="was changed while it was read"):
        list(splits.training_examples())


def test_the_check_sees_the_first_pass_alone(tmp_path: Path) -> None:
    rows = [{"prompt": f"the question number {i} of many", "completion": "x"} for i in range(60)]
    path = write_rows(tmp_path / "t.jsonl", [*rows, rows[0], {"prompt": "", "completion": "x"}])
    held_out = write_rows(tmp_path / "h.jsonl", [rows[1], {"prompt": rows[2]["prompt"] + "?", "completion": "x" * 999}])
    checker = Checker()
    with opens() as counts:
        splits = read_splits(DataSettings(path=path, eval_path=held_out), 0, checker)
    assert counts[str(path)] == counts[str(held_out)] == 2  # the first bytes, and all of them
    assert (checker.rows_in, checker.kept, checker.rejected.lines()) == (62, 61, splits.rejected.lines())
    codes = {finding.code: finding.count for finding in [*checker.findings(), *checker.near_leaks()]}
    assert codes["duplicates"] == 1
    assert "near leaks" in codes
    assert "leaks" not in codes  # said once, of the rows that are really trained on
    assert splits.leaks == [f"{held_out}: 1 prompt is also trained on, so that its scores will be too good"]
    first = Checker(most=10)
    read_splits(DataSettings(path=path), 0, first)
    assert first.rows_in == 10


def test_opened_files_are_shared(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "t.jsonl", [{"a": 1}])
    opened = OpenFiles()
    (first,), (second,) = opened.of(DataSettings(path=path)), opened.of(DataSettings(path=path, limit=1))
    assert first is second
    assert opened.fingerprint(DataSettings(path=path)) == [[[str(path), hashlib.sha256(path.read_bytes()).hexdigest()]]]
    assert opened.fingerprint(DataSettings(path=Path("owner/name"))) is None
