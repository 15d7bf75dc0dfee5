"""Files of data from anybody: rows, or one message; within seconds, and in little memory."""

import contextlib
import gzip
import io
import json
import lzma
import re
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import openpyxl
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from afina.core.errors import DataError
from afina.data.files import file as files
from afina.data.formats import _json, _text, arrow, delimited, excel
from afina.data.read import read
from afina.data.roles.opening import columns_of
from afina.data.rows import Notes, Record, Rejected
from afina.data.settings import DataSettings

MOST = 50_000


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that small files reach."""
    for module in (_text, _json, delimited):
        monkeypatch.setattr(module, "RECORD_CHARACTERS", MOST)
    monkeypatch.setattr(_text.too_long, "__defaults__", (MOST,))
    monkeypatch.setattr(_json._Scanner.value, "__defaults__", ("", MOST))
    monkeypatch.setattr(_json, "JSON_CHARACTERS", 4 * MOST)
    monkeypatch.setattr(_text, "_CHUNK", 10_000)
    for module in (files, arrow):
        monkeypatch.setattr(module, "UNPACKED_BYTES", 100_000)
    monkeypatch.setattr(excel, "WORKBOOK_BYTES", 100_000)


def rows_of(path: Path) -> list[Record | Rejected]:
    begun = time.monotonic()
    try:
        return list(read(DataSettings(path=path), Notes()))
    finally:
        assert time.monotonic() - begun < 8


def refused(path: Path, words: str) -> None:
    with pytest.raises(DataError, match=words) as error:
        rows_of(path)
    assert len(error.value.problems) == 1
    assert len(str(error.value)) < 600


LONG = "x" * (MOST + 10)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": "' + LONG * 3 + '"}\n{"a": 2}\n', r"a\.jsonl:2: more than 50,000 characters"),
        ("a.jsonl", '{"a": 1}\n' + LONG * 9, r"a\.jsonl:2: more than 50,000 characters"),
        ("a.json", '[{"a": 1}, {"a": "' + LONG + '"}]', r"a\.json:1: more than 50,000 characters"),
        ("a.json", '[{"a": 1},\n{"a": "' + LONG * 9, r"a\.json:2: more than 50,000 characters"),
        ("a.json", '{"rows": [' + '{"a": 1}, ' * 30_000 + "{}]}", "more than 200,000 characters"),
        ("a.json", " " * (MOST * 2), "begins with .* blanks"),
        ("a.csv", "a,b\n1,2\n" + LONG + ",2\n", r"a\.csv:3: more than 50,000 characters"),
        ("a.csv", "a,b\n1,2\n" + LONG * 9, "more than 50,000 characters"),
        ("a.csv", 'a,b\n1,2\n1,"' + "x\n" * 1990 * 20, "more than 50,000 characters|never closed"),
        ("a.csv", "a,b\n" + ('1,"' + "y" * 9000 + '\n"') + ',"' * 3 + ("z" * 9000 + "\n") * 9, "more than|not CSV"),
        ("a.csv", "a" + ",b" * 16_499 + "\n1,2\n", "16,500 columns, 16,384 are read"),
        ("a.txt", LONG * 3, r"a\.txt:1: more than 50,000 characters"),
    ],
)  # fmt: skip
def test_a_row_without_an_end_is_refused(name: str, text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    refused(tmp_path / name, words)


@pytest.mark.usefixtures("small")
def test_rows_below_the_limit_are_read_whole(tmp_path: Path) -> None:
    text = "y" * (MOST - 100)
    rows = [{"a": text, "b": i} for i in range(6)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.csv").write_text("a,b\n" + "".join(f"{row['a']},{row['b']}\n" for row in rows))
    for name in ("a.jsonl", "a.json"):
        assert [row.values for row in rows_of(tmp_path / name)] == rows
    assert [row.values for row in rows_of(tmp_path / "a.csv")] == [row | {"b": str(row["b"])} for row in rows]


def test_a_long_item_is_parsed_once(tmp_path: Path) -> None:
    """Not from its beginning with every piece that is read."""
    item = {"a": ["text " * 10] * 120_000}
    (tmp_path / "a.json").write_text(json.dumps([item, {"a": 1}]))
    begun = time.monotonic()
    assert [row.values for row in rows_of(tmp_path / "a.json")] == [item, {"a": 1}]
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("depth", [101, 990, 100_000])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_rows_are_rejected(depth: int, opening: str, tmp_path: Path) -> None:
    closing = {"[": "]", '{"a":': "}"}[opening]
    deep = f'{{"q": {opening * depth}1{closing * depth}}}'
    (tmp_path / "a.jsonl").write_text(f'{{"q": 1}}\n{deep}\n{{"q": 2}}\n')
    kinds = [type(row) for row in rows_of(tmp_path / "a.jsonl")]
    assert kinds == [Record, Rejected, Record]


def test_objects_of_too_many_columns_are_rejected(tmp_path: Path) -> None:
    wide = json.dumps({f"c{i}": i for i in range(16_500)})
    (tmp_path / "a.jsonl").write_text(f'{{"q": 1}}\n{wide}\n')
    assert [type(row) for row in rows_of(tmp_path / "a.jsonl")] == [Record, Rejected]


@pytest.mark.parametrize("header", [["a"] * 3000, [""] * 3000, ["a", "a_2"] * 1500, ["a_2", "a"] * 1500])
def test_equal_headers_are_numbered(header: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",".join(header) + "\n" + ",".join(map(str, range(3000))) + "\n")
    (row,) = rows_of(tmp_path / "a.csv")
    assert isinstance(row, Record)
    assert list(row.values.values()) == list(map(str, range(3000)))


def noted(path: Path) -> list[str]:
    notes = Notes()
    list(read(DataSettings(path=path), notes))
    return notes.lines


def test_what_is_said_of_many_columns_is_short(tmp_path: Path) -> None:
    for name, header, words in (
        ("equal", ["a"] * 9000, "column 2 is called 'a_2', .* and 8,979 more, because their headers are duplicates"),
        ("empty", ["a"] + [""] * 8999, "column 2 is called 'column_2', .* and 8,979 more, because their headers are "),
        ("none", ["1"] * 9000, "has no header: its columns are called column_1, .* and 8,980 more"),
    ):
        path = tmp_path / f"{name}.csv"
        path.write_text(",".join(header) + "\n" + ",".join(["2"] * 9000) + "\n")
        (line,) = (line for line in noted(path) if "called" in line)
        assert re.search(words, line)
        assert len(line) < 1200
    (tmp_path / "two.csv").write_text("a,a\n1,2\n")
    assert "two.csv: column 2 is called 'a_2', because its header is a duplicate" in noted(tmp_path / "two.csv")[0]


@pytest.mark.parametrize("item", ["1", "[]", "{}", "null", '"text"', "[1, 2]"])
def test_a_file_of_no_rows_at_all_is_given_up(item: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afina.data.read.MOST_REJECTED", 1000)
    (tmp_path / "a.json").write_text(f"[{', '.join([item] * 1001)}]")
    (tmp_path / "a.jsonl").write_text(f"{item}\n" * 1001)
    for name in ("a.json", "a.jsonl"):
        refused(tmp_path / name, "none of its first 1,000 rows can be used; of the last, it")
    (tmp_path / "a.jsonl").write_text(f"{item}\n" * 999 + '{"a": 1}\n' + f"{item}\n" * 1001)
    kinds = [type(row) for row in rows_of(tmp_path / "a.jsonl")]
    assert kinds == [Rejected] * 999 + [Record] + [Rejected] * 1001


def test_what_is_not_noted_any_more_is_said() -> None:
    notes = Notes()
    notes.say(*(f"line {i}" for i in range(100)))
    assert len(notes.lines) == 100
    notes.say("line 7")
    assert len(notes.lines) == 100
    notes.say("one more")
    assert notes.lines[-1] == "more was found than the first 100 notes of a kind say"


def test_of_a_very_wide_table_few_rows_are_looked_at() -> None:
    rows = [dict.fromkeys(map(str, range(16_000)), "same")] * 12
    assert {len(column.values) for column in columns_of(rows)} == {10}
    assert columns_of([{}]) == []
    assert {len(column.values) for column in columns_of([{"a": "b"}] * 400)} == {300}


def test_names_of_equal_headers(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,a,a_2,b,a\n1,2,3,4,5\n")
    (row,) = rows_of(tmp_path / "a.csv")
    assert list(row.values) == ["a", "a_2", "a_2_2", "b", "a_3"]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress)])
@pytest.mark.parametrize("content", [b"\0", b"x", b"a,b\n", b'{"a": 1}\n'])
def test_a_bomb_is_not_unpacked(suffix: str, pack: Callable[[bytes], bytes], content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(pack(content * (20_000_000 // len(content))))
    refused(path, "compressed to less than one part in 250|more than 50,000")


@pytest.mark.usefixtures("small")
def test_text_that_packs_well_is_unpacked(tmp_path: Path) -> None:
    rows = [{"a": f"the {i} of {i * i} is {i**3 % 997}"} for i in range(9000)]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert [row.values for row in rows_of(path)] == rows


def sheet(path: Path, xml: str, before: Callable[[openpyxl.Workbook], None] = lambda book: None) -> Path:
    """A workbook whose first sheet is `xml`."""
    book = openpyxl.Workbook()
    before(book)
    book.active.append(["q", "a"])
    book.save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {each.filename: archive.read(each) for each in archive.infolist()}
    head = parts["xl/worksheets/sheet1.xml"].decode()
    parts["xl/worksheets/sheet1.xml"] = (head[: head.index("<sheetData>")] + xml + "</worksheet>").encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def cell(where: str, text: str) -> str:
    return f'<c r="{where}" t="inlineStr"><is><t>{text}</t></is></c>'


TWO_ROWS = f'<row r="1">{cell("A1", "q")}{cell("B1", "a")}</row><row r="2">{cell("A2", "one")}{cell("B2", "two")}</row>'


def test_a_sheet_that_claims_all_cells(tmp_path: Path) -> None:
    path = sheet(tmp_path / "a.xlsx", f'<dimension ref="A1:XFD1048576"/><sheetData>{TWO_ROWS}</sheetData>')
    assert [row.values for row in rows_of(path)] == [{"q": "one", "a": "two"}]


def test_the_whole_sheet_of_the_cases(hostile: Path) -> None:
    assert rows_of(hostile / "xlsx_whole_sheet.xlsx")


def test_a_last_row_far_below_is_read(tmp_path: Path) -> None:
    far = f'<row r="900000">{cell("A900000", "x")}{cell("B900000", "y")}</row>'
    found = rows_of(sheet(tmp_path / "a.xlsx", f"<sheetData>{TWO_ROWS}{far}</sheetData>"))
    assert [row.location.split(":")[-1] for row in found] == ["2", "900000"]
    assert found[1].values == {"q": "x", "a": "y"}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("xml", "words"),
    [
        (f'<sheetData>{TWO_ROWS}<row r="99999999999"><c r="A9"/></row></sheetData>', "goes on to row 1,048,577"),
        ("<sheetData>" + "".join(f'<row r="{i}">{cell(f"XFD{i}", "x")}</row>' for i in range(1, 40)) + "</sheetData>",
         "goes on to row|compressed"),
        ("<sheetData>" + TWO_ROWS + " " * 30_000_000 + "</sheetData>", "less than one part in 50"),
        ("<sheetData><row r='1'><c r='1A'/></row></sheetData>", "cannot read data"),
        ("<sheetData><row r='x'></row></sheetData>", "cannot read data"),
        ("<sheetData><row>", "cannot read data"),
        ('<sheetData><row r="1"><c r="A1" t="s"><v>99</v></c></row></sheetData>', "cannot read data"),
    ],
)  # fmt: skip
def test_sheets_that_lead_far_away(xml: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(excel, "SHEET_CELLS", 300_000)
    refused(sheet(tmp_path / "a.xlsx", xml), words)


@pytest.mark.parametrize(
    "content",
    [b"PK\x03\x04", b"PK\x03\x04" + b"\0" * 900, b"PAR1" + b"\0" * 900 + b"PAR1", b"ARROW1" + b"\xff" * 900, b"ARROW1"],
)
@pytest.mark.parametrize("name", ["a.xlsx", "a.parquet", "a.arrow"])
def test_containers_that_are_damaged(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "a\\.")


@pytest.mark.usefixtures("small")
def test_a_table_of_few_bytes_and_many_rows_is_refused(tmp_path: Path) -> None:
    table = pyarrow.table({"a": pyarrow.array(["the same text " * 2000] * 3000)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "less than one part in 250")
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as out:
        options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
        with pyarrow.ipc.new_file(out, table.schema, options=options) as writer:
            writer.write_table(table)
    refused(tmp_path / "a.arrow", "less than one part in 250")


def test_many_rows_of_nothing_are_refused(tmp_path: Path) -> None:
    """They take no bytes, but time."""
    table = pyarrow.table({"a": pyarrow.nulls(40_000_000)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    pyarrow.feather.write_feather(table, tmp_path / "a.feather", compression="uncompressed")
    pyarrow.parquet.write_table(pyarrow.table({"a": [True] * 4_000_000}), tmp_path / "bits.parquet")
    for name in ("a.parquet", "a.feather", "bits.parquet"):
        refused(tmp_path / name, "less than one part in 250")
    pyarrow.parquet.write_table(pyarrow.table({"a": pyarrow.nulls(5000)}), tmp_path / "a.parquet")
    assert len(rows_of(tmp_path / "a.parquet")) == 5000


def test_tables_of_arrow_are_read_and_their_limits_kept(tmp_path: Path) -> None:
    table = pyarrow.table({"a": [f"row {i}" for i in range(2500)], "b": [[i, {"c": i}["c"]] for i in range(2500)]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    pyarrow.feather.write_feather(table, tmp_path / "a.feather", compression="uncompressed")
    for name in ("a.parquet", "a.feather"):
        assert [row.values for row in rows_of(tmp_path / name)] == table.to_pylist()
    wide = pyarrow.table({f"c{i}": [1] for i in range(16_500)})
    pyarrow.feather.write_feather(wide, tmp_path / "wide.feather")
    refused(tmp_path / "wide.feather", "16,500 columns")


def test_offsets_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    table = pyarrow.table({"a": ["one", "two", "three"]})
    out = io.BytesIO()
    with pyarrow.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    content = out.getvalue()
    offsets = b"\x00\x00\x00\x00\x03\x00\x00\x00\x06\x00\x00\x00\x0b\x00\x00\x00"
    assert content.count(offsets) == 1
    for bad in (0x7FFFFFFF, 0xFFFFFFFF, 0x0B000000):
        changed = content.replace(offsets, offsets[:12] + bad.to_bytes(4, "little"))
        (tmp_path / "a.arrow").write_bytes(changed)
        refused(tmp_path / "a.arrow", "cannot read data")


@pytest.mark.parametrize("pattern", ["**/" * 40 + "*.nothing", "**/**/**/**/**/**/*.nothing", "**/" * 200 + "a.jsonl"])
def test_patterns_of_a_card_go_through_the_folders_once(pattern: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: c\n  data_files: '{pattern}'\n---\n")
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    (tmp_path.joinpath(*"bcdefghijklm")).mkdir(parents=True)
    with contextlib.suppress(DataError):
        assert [row.values for row in rows_of(tmp_path)] == [{"a": 1}]


@pytest.mark.parametrize(
    "text", ['{"a": DIGITS}', '[{"a": DIGITS}]', '{"a": [DIGITS, 1]}\n{"a": 2}', '{"rows": [{"a": -DIGITS}]}']
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_number_of_too_many_digits_is_called_that(text: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text(text.replace("DIGITS", "9" * 100_000))
    try:
        (reason,) = [each.reason for each in rows_of(path) if isinstance(each, Rejected)]
    except DataError as error:
        reason = str(error)
    assert "a number has thousands of digits" in reason
    assert len(reason) < 600


@pytest.mark.parametrize("count", [8, 1000, 4096, 70_000])
def test_nothing_but_zeros_is_a_binary_file(count: int, tmp_path: Path) -> None:
    for name, pack in (("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress), ("a.csv", bytes), ("a.txt", bytes)):
        (tmp_path / name).write_bytes(pack(b"\0" * count))
        refused(tmp_path / name, "is a binary file")
