"""Two thousand inputs that nobody planned: never a traceback, never a row that is lost in silence."""

import csv
import io
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afina.core.errors import DataError
from afina.data.quality.checks import check
from afina.data.settings import DataSettings

texts = st.text(max_size=30)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
names = st.sampled_from(
    ["prompt", "completion", "text", "label", "messages", "conversations", "question", "answers", "x", ""]
)
anything = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))


def checked(path: Path, rows: int | None = None) -> None:
    """The file is checked, or refused with a message; every row is accounted for."""
    try:
        found = check(DataSettings(path=path))
    except DataError:
        return
    assert found.rows_in == found.rows_kept + found.rows_reported
    assert rows is None or found.rows_in == rows, path.read_bytes()[:300]
    json.dumps(found.json())
    total = sum(int(line.split(" ", 1)[0]) for line in found.reasons)
    assert total == found.rows_reported


@anything
@given(st.lists(st.dictionaries(names, values, max_size=4) | values, max_size=8), st.booleans())
def test_any_json(tmp_path_factory: pytest.TempPathFactory, rows: list, lines: bool) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = folder / ("fuzz.jsonl" if lines else "fuzz.json")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows))
    # The only row of a file may be all rows, where its columns are lists.
    checked(path, len(rows) if len(rows) > 1 or not lines else None)


@anything
@given(
    st.lists(
        st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12), min_size=1, max_size=4),
        max_size=8,
    ),
    st.sampled_from(",;\t"),
)  # fmt: skip
def test_any_table(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], delimiter: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.csv"
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerow(["prompt", "completion"])
    writer.writerows(rows)
    path.write_text(out.getvalue(), encoding="utf-8", newline="")
    regular = all(
        len(row) == 2 and any(row) and not set("".join(row)) & set(',;\t|"\r\n\x1c\x1d\x1e\x85\u2028\u2029')
        for row in rows
    )
    checked(path, len(rows) if regular and rows else None)


@anything
@given(
    st.binary(max_size=200),
    st.sampled_from(
        ["csv", "tsv", "jsonl", "json", "txt", "parquet", "arrow", "xlsx", "jsonl.gz", "csv.bz2", "json.zst"]
    ),
)
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes, suffix: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzz.{suffix}"
    path.write_bytes(data)
    checked(path)


@pytest.fixture
def real(tmp_path: Path) -> dict[str, bytes]:
    """Small files of each kind."""
    import openpyxl
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": f'question número {i}; "quoted"', "completion": f"answer,\n{i}"} for i in range(12)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    book = openpyxl.Workbook()
    for row in [list(rows[0]), *(list(row.values()) for row in rows)]:
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    out = io.StringIO()
    csv.writer(out).writerows([list(rows[0]), *(list(row.values()) for row in rows)])
    return {
        "jsonl": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(),
        "json": json.dumps(rows).encode(), "csv": out.getvalue().encode(),
        "parquet": (tmp_path / "a.parquet").read_bytes(), "xlsx": (tmp_path / "a.xlsx").read_bytes(),
    }  # fmt: skip


def test_flipped_bytes(real: dict[str, bytes], tmp_path: Path) -> None:
    generator = random.Random(0)
    outcomes: Counter[str] = Counter()
    for i in range(800):
        kind = generator.choice(list(real))
        data = bytearray(real[kind])
        for _ in range(generator.choice([1, 1, 3, 20])):
            data[generator.randrange(len(data))] = generator.randrange(256)
        if generator.random() < 0.2:
            data = data[: generator.randrange(len(data))]
        path = tmp_path / f"{i}.{kind}"
        path.write_bytes(data)
        checked(path)
        outcomes[kind] += 1
    assert min(outcomes.values()) > 100
