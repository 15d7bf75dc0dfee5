"""Files as people have them: formats, encodings, delimiters, compression, layouts, and those that are not what they
say."""

import bz2
import csv
import errno
import gzip
import io
import json
import lzma
import subprocess
import sys
from pathlib import Path

import openpyxl
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from conftest import write_rows

from afina.core.errors import DataError, OutputError, Unmapped
from afina.data.mapping import read_examples
from afina.data.read import read
from afina.data.rows import Notes, Record, Rejected
from afina.data.settings import DataSettings
from afina.data.splits import read_splits

ROWS = [
    {"question": 'um "dois"\ntrês', "label": "não, é"},
    {"question": "olá\u2028é", "label": "sim"},
    {"question": "x; y\tz", "label": "sim"},
]
VALUES = [tuple(row.values()) for row in ROWS]


def rows(path: Path, **settings) -> tuple[list[dict], list[Rejected], list[str]]:
    notes = Notes()
    found = list(read(DataSettings(path=path, **settings), notes))
    records = [row.values for row in found if isinstance(row, Record)]
    return records, [row for row in found if isinstance(row, Rejected)], notes.lines


def table(delimiter: str = ",", ends: str = "\n", header: bool = True) -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator=ends)
    writer.writerows([list(ROWS[0]) if header else [], *VALUES])
    return out.getvalue().lstrip("\r\n")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "latin-1"])
def test_a_table_in_any_dress_gives_the_same_rows(delimiter: str, ends: str, encoding: str, tmp_path: Path) -> None:
    one_byte = encoding in ("cp1252", "latin-1")
    text = table(delimiter, ends).replace("\u2028", " ") if one_byte else table(delimiter, ends)
    expected = [{k: v.replace("\u2028", " ") for k, v in row.items()} for row in ROWS] if one_byte else ROWS
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    records, rejected, notes = rows(tmp_path / "t.csv")
    assert records == expected
    assert not rejected
    assert any("separated by" in line for line in notes) == (delimiter != ",")
    assert any("is read as" in line for line in notes) == (one_byte or "16" in encoding)


def test_one_data_set_in_every_format(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "a.json").write_text(json.dumps(ROWS, ensure_ascii=False))
    (tmp_path / "b.json").write_text(json.dumps({"version": 1, "data": ROWS}))
    (tmp_path / "lines.json").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "a.csv").write_text(table())
    (tmp_path / "a.tsv").write_text(table("\t"))
    arrow = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(arrow, tmp_path / "a.parquet")
    pyarrow.parquet.write_table(arrow, tmp_path / "misnamed.csv")
    for name, maker in (("a.arrow", pyarrow.ipc.new_file), ("stream.arrow", pyarrow.ipc.new_stream)):
        with maker(str(tmp_path / name), arrow.schema) as writer:
            writer.write_table(arrow)
    book = openpyxl.Workbook()
    book.active.append(list(ROWS[0]))
    for row in VALUES:
        book.active.append(list(row))
    book.create_sheet("other").append(["x"])
    book.save(tmp_path / "a.xlsx")
    raw = (tmp_path / "a.jsonl").read_bytes()
    for name, data in (
        ("a.jsonl.gz", gzip.compress(raw)),
        ("a.jsonl.bz2", bz2.compress(raw)),
        ("a.jsonl.xz", lzma.compress(raw)),
    ):
        (tmp_path / name).write_bytes(data)
    with pyarrow.CompressedOutputStream(str(tmp_path / "a.jsonl.zst"), "zstd") as file:
        file.write(raw)
    for path in sorted(tmp_path.iterdir()):
        records, rejected, notes = rows(path)
        assert records == ROWS, path
        assert not rejected
        assert any("sheet" in line for line in notes) == (path.suffix == ".xlsx")
    records, _, _ = rows(tmp_path)  # a folder is all its files
    assert len(records) == 3 * len(list(tmp_path.iterdir()))


def test_numbers_and_dates_of_a_sheet_are_text(tmp_path: Path) -> None:
    import datetime

    book = openpyxl.Workbook()
    for row in (
        ["Report 2024"],
        [],
        ["text", "stars", "day", "note"],
        ["good", 5.0, datetime.date(2024, 3, 1)],
        ["bad", 1.5, None, "x"],
    ):
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    records, rejected, notes = rows(tmp_path / "a.xlsx")
    assert records[0] == {"text": "good", "stars": "5", "day": "2024-03-01", "note": ""}
    assert records[1] == {"text": "bad", "stars": "1.5", "day": "", "note": "x"}
    assert not rejected
    assert "left out before the header" in notes[0]


def test_what_stands_around_a_table_is_reported(tmp_path: Path) -> None:
    text = (
        "Estimativas\nPeríodo: 2019\n\nnome;total;nota\nAgudo;1;\nAceguá;2;b\nTotal;3;;\nFonte: IBGE.\nObs; uma nota\n"
    )
    (tmp_path / "t.csv").write_bytes(text.encode("latin-1"))
    records, rejected, notes = rows(tmp_path / "t.csv")
    assert records == [
        {"nome": "Agudo", "total": "1", "nota": ""}, {"nome": "Aceguá", "total": "2", "nota": "b"},
    ]  # fmt: skip
    assert [(r.location.rsplit(":", 1)[1], r.reason) for r in rejected] == [
        ("7", "it looks like a total, not like a row: 'Total 3 '"),
        ("8", "1 field, the header has 3"), ("9", "2 fields, the header has 3"),
    ]  # fmt: skip
    assert any("2 rows left out before the header: 'Estimativas', 'Período: 2019'" in line for line in notes)


def test_headers(tmp_path: Path) -> None:
    cases = {
        "1,2\n3,4\n": [{"column_1": "1", "column_2": "2"}, {"column_1": "3", "column_2": "4"}],
        "good film,positive\nbad film,negative\nfine,positive\n": [
            {"column_1": "good film", "column_2": "positive"}, {"column_1": "bad film", "column_2": "negative"},
            {"column_1": "fine", "column_2": "positive"},
        ],
        "a,a,\n1,2,3\n": [{"a": "1", "a_2": "2", "column_3": "3"}],
        "text\nhello\nyou\n": [{"text": "hello"}, {"text": "you"}],
        'size\tname\n5" disk\tx\n3" disk\ty\n': [{"size": '5" disk', "name": "x"}, {"size": '3" disk', "name": "y"}],
    }  # fmt: skip
    for text, expected in cases.items():
        (tmp_path / "t.csv").write_text(text)
        assert rows(tmp_path / "t.csv")[0] == expected, text


def test_nul_bytes_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"a,b\nx\0y,1\n" + b"z,2\n" * 30)
    records, _, notes = rows(tmp_path / "t.csv")
    assert records[0] == {"a": "xy", "b": "1"}
    assert "1 NUL byte is left out" in notes[0]


def test_plain_text_and_lines_that_answer_one_another(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\n\nthree\r\n")
    assert [r["text"] for r in rows(tmp_path / "a.txt")[0]] == ["one\ntwo", "three"]
    assert [r["text"] for r in rows(tmp_path / "a.txt", text="line")[0]] == ["one", "two", "three"]
    assert [r["text"] for r in rows(tmp_path / "a.txt", text="document")[0]] == ["one\ntwo\n\n\nthree"]
    (tmp_path / "b.txt").write_text("um\ndois\n\n\ntrês\n")
    found, _, _ = rows(tmp_path / "a.txt", target=tmp_path / "b.txt")
    assert found == [{"source": s, "target": t} for s, t in (("one", "um"), ("two", "dois"), ("three", "três"))]
    (tmp_path / "c.txt").write_text("um\n")
    for source, target in (("a.txt", "c.txt"), ("c.txt", "a.txt")):
        with pytest.raises(DataError, match=r"lines, .* has more"):
            rows(tmp_path / source, target=tmp_path / target)


def test_a_long_list_is_read_item_by_item(tmp_path: Path) -> None:
    many = [{"text": "x" * 1000, "n": i, "deep": [{"y": "]"}]} for i in range(3000)]  # several chunks
    (tmp_path / "a.json").write_text(json.dumps([*many, 7, "text"]))
    records, rejected, _ = rows(tmp_path / "a.json")
    assert records == many
    assert [r.reason.split(",")[0] for r in rejected] == ["it holds a number", "it holds a text"]
    for text, words in (
        ("[1, 2", "not JSON after item"),
        ("[{}] x", "something follows"),
    ):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(DataError, match=words):
            rows(tmp_path / "b.json")


def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("".join(json.dumps(row) + "\n" for row in ROWS), json.dumps(ROWS), table(";")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert rows(Path("-"))[0] == ROWS

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a,b")))
    monkeypatch.setattr("afina.data.read.shutil.copyfileobj", full)
    with pytest.raises(OutputError, match=r"(?s)no space left.*TMPDIR"):
        rows(Path("-"))


def test_tables_of_arrow_are_read_by_a_process_that_has_read_nothing_yet(tmp_path: Path) -> None:
    """Its allocator asks for memory only now, within the limit on what a table may take."""
    table = pyarrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    pyarrow.feather.write_feather(table, tmp_path / "d.feather", compression="zstd")
    code = (
        "import sys, pathlib; from afina.data.read import read; from afina.data.rows import Notes; "
        "from afina.data.settings import DataSettings; "
        "print([r.values for r in read(DataSettings(path=pathlib.Path(sys.argv[1])), Notes())])"
    )
    for name in ("d.parquet", "d.feather"):
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, str(tmp_path / name)], capture_output=True, text=True, check=False
        )
        assert done.stdout.strip() == str(ROWS), done.stderr


CHAT = [{"from": "system", "value": "s"}, {"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]
LAYOUTS = {
    "instruction, input and output": ({"instruction": "Do", "input": "", "output": "Done"}, "Do", "Done"),
    "prompt and completion": ({"query": "q", "response": "r", "id": 3}, "q", "r"),
    "question, context and answer": (
        {"id": "1", "question": "q", "context": "c", "answers": {"text": ["a", "b"], "answer_start": [0, 1]}},
        "c\n\nq", "a",
    ),
    "prompt, context and completion": (
        {"instruction": "i", "context": "c", "response": "r", "category": "qa"}, "c\n\ni", "r",
    ),
    "text and label": ({"id": "1", "text": "t", "sentiment": "pos"}, "t", "pos"),
    "document and summary": ({"article": "d", "highlights": "h", "id": 1}, "Summarise:\nd", "h"),
    "translation pairs": ({"translation": {"en": "hi", "pt": "oi"}}, "Translate from English to Portuguese:\nhi", "oi"),
    "source and target": ({"source": ["a", "b"], "target": ["c"]}, "a b", "c"),
    "preference pairs, the chosen one learned": ({"prompt": "p", "chosen": "c", "rejected": "r"}, "p", "c"),
    "ShareGPT conversations": ({"conversations": CHAT}, "h", "g"),
    "messages": ({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}, "u", "a"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_are_recognised_and_said(name: str, tmp_path: Path) -> None:
    row, asked, answer = LAYOUTS[name]
    path = write_rows(tmp_path / "d.jsonl", [row] * 4)
    found, rejected, notes = read_examples(DataSettings(path=path), needs_completion=True)
    assert not rejected
    assert (found[0].messages[-1]["content"], found[0].completion) == (asked, answer)
    assert any(f": {name}" in line for line in notes.lines)


_LETTERED, _FROM_0, _FROM_1 = "q\n\nA. x\nB. y\nC. z", "q\n\n0. x\n1. y\n2. z", "q\n\n1. x\n2. y\n3. z"
CHOICES = {
    "letters": ({"choices": ["x", "y", "z"]}, "answer", "BAC", _LETTERED),
    "numbers from 0": ({"choices": ["x", "y", "z"]}, "answer", [0, 1, 2], _FROM_0),
    "numbers as text": ({"endings": ["x", "y", "z"]}, "label", ["0", "2", "1"], _FROM_0),
    "numbers from 1": ({"options": ["x", "y", "z"]}, "answer", [1, 3, 2], _FROM_1),
    "texts": ({"options": ["x", "y", "z"]}, "answer", ["z", "x", "x"], "q\n\nx\ny\nz"),
    "beside their letters": ({"choices": {"text": ["x", "y", "z"], "label": ["A", "B", "C"]}}, "answerKey", "ABB",
                             _LETTERED),
    "columns": ({"A": "x", "B": "y", "C": "z"}, "Answer", "CBB", _LETTERED),
    "columns by number": ({"option1": "x", "option2": "y", "option3": "z"}, "correct", [3, 1, 1], _FROM_1),
    "after a text": ({"article": "t", "options": ["x", "y", "z"]}, "answer", "CBB", f"t\n\n{_LETTERED}"),
    "from 0 or 1, unknown": ({"choices": ["x", "y", "z"]}, "answer", [1, 1, 2], "q"),
    "from 0 to more": ({"choices": ["x", "y", "z"]}, "answer", [0, 3, 2], "q"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_shown_as_they_are_answered(name: str, tmp_path: Path) -> None:
    columns, key, answers, asked = CHOICES[name]
    path = write_rows(tmp_path / "d.jsonl", [{"question": "q", **columns, key: answer} for answer in answers])
    found, rejected, notes = read_examples(DataSettings(path=path), needs_completion=True)
    assert not rejected
    assert [(each.messages[-1]["content"], each.completion) for each in found] == [(asked, str(a)) for a in answers]
    assert any("multiple choice" in line for line in notes.lines) == (asked != "q")
    assert any("not used: 'choices'" in line for line in notes.lines) == (asked == "q")


def test_a_text_without_a_context_among_others_that_have_one(tmp_path: Path) -> None:
    """As Dolly has them."""
    rows = [{"instruction": "i", "context": text, "response": "r"} for text in ("c", "", None)]
    path = write_rows(tmp_path / "d.jsonl", rows)
    found, rejected, _ = read_examples(DataSettings(path=path), needs_completion=True)
    assert not rejected
    assert [each.messages[-1]["content"] for each in found] == ["c\n\ni", "i", "i"]


def test_a_title_is_no_text_where_its_text_is_there(tmp_path: Path) -> None:
    rows = [{"title": "Lamp", "description": "A lamp for two", "category": "home", "condition": "new"}] * 4
    with pytest.raises(Unmapped):
        read_examples(DataSettings(path=write_rows(tmp_path / "d.jsonl", rows)), needs_completion=True)
    rows = [{key: value for key, value in row.items() if key != "description"} for row in rows]
    (found, *_), _, _ = read_examples(DataSettings(path=write_rows(tmp_path / "d.jsonl", rows)), needs_completion=True)
    assert (found.messages[-1]["content"], found.completion) == ("Lamp", "home")


def test_a_first_line_that_names_the_delimiter(tmp_path: Path) -> None:
    for line in ("sep=;", '"sep=;"', "SEP=;"):
        path = tmp_path / "d.csv"
        path.write_bytes(f"{line}\r\ntext;label\r\na, b, c;x\r\nd, e, f;y\r\n".encode())
        found, _, notes = rows(path)
        assert found == [{"text": "a, b, c", "label": "x"}, {"text": "d, e, f", "label": "y"}]
        assert any("separated by semicolons" in each for each in notes)
    path.write_text("sep=^\ntext^label\na^x\n")
    assert rows(path)[0] == [{"text": "a", "label": "x"}]


def test_the_longest_sheet_is_read_and_the_others_are_named(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.title = "Read me"
    book.active.append(["Made in May"])
    for title, count in (("FAQ", 3), ("Old", 2)):
        sheet = book.create_sheet(title)
        for number in range(count + 1):
            sheet.append([f"q{number}", "a"] if number else ["question", "answer"])
    book.save(tmp_path / "d.xlsx")
    found, _, notes = rows(tmp_path / "d.xlsx")
    assert [row["question"] for row in found] == ["q1", "q2", "q3"]
    assert any("'FAQ' is read, which has the most rows; not read: 'Old', 'Read me'" in each for each in notes)


def test_merged_cells_are_in_each_of_their_rows(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (["Kinds of things", None], ["kind", "thing"], ["lamp", "a"], [None, "b"], [None, "c"], ["pen", "d"]):
        book.active.append(row)
    book.active.append([None, "e"])  # not merged: it says nothing
    book.active.merge_cells("A1:B1")
    book.active.merge_cells("A3:A5")
    book.save(tmp_path / "d.xlsx")
    found, _, _ = rows(tmp_path / "d.xlsx")
    assert [(row["kind"], row["thing"]) for row in found] == [
        ("lamp", "a"), ("lamp", "b"), ("lamp", "c"), ("pen", "d"), ("", "e"),
    ]  # fmt: skip


def test_languages_in_headers(tmp_path: Path) -> None:
    for header in ("english,portuguese", "en,pt", "text_en,text_pt", "English,português"):
        (tmp_path / "t.csv").write_text(f"{header}\nhello,olá\ngood day,bom dia\n")
        found, _, notes = read_examples(DataSettings(path=tmp_path / "t.csv"), needs_completion=True)
        assert found[0].messages[0]["content"] == "Translate from English to Portuguese:\nhello"
    (line,) = [each for each in notes.lines if "translation pairs" in each]
    assert r"--prompt $'Translate from English to Portuguese:\n{English}' --completion '{português}'" in line


def test_tools_and_calls_are_kept(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "h"}, {"from": "function_call", "value": '{"name": "f"}'},
        {"from": "observation", "value": "o"},
        {"from": "gpt", "value": "g"},
    ]  # fmt: skip
    path = write_rows(tmp_path / "d.jsonl", [{"conversations": turns, "tools": '[{"name": "f"}]', "system": "s"}])
    ((example,), _, _) = read_examples(DataSettings(path=path), needs_completion=True)
    assert [m["role"] for m in example.messages] == ["system", "user", "assistant", "tool"]
    assert example.messages[0]["content"] == "s"
    assert example.tools == ({"type": "function", "function": {"name": "f"}},)
    called = {"type": "function", "function": {"name": "f", "arguments": {}}}
    assert example.messages[2] == {"role": "assistant", "content": "", "tool_calls": [called]}
    openai = [
        {"role": "developer", "content": "d"}, {"role": "user", "content": [{"type": "text", "text": "u"}]},
        {
            "role": "assistant", "content": None,
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "o"}, {"role": "assistant", "content": "a"},
    ]  # fmt: skip
    path = write_rows(tmp_path / "e.jsonl", [{"messages": openai}])
    ((example,), _, _) = read_examples(DataSettings(path=path), needs_completion=True)
    assert [m["content"] for m in example.messages] == ["d", "u", "", "o"]
    assert example.messages[2]["tool_calls"] == [called]


def test_what_is_not_said_is_asked_for(tmp_path: Path) -> None:
    names = ("Eagle", "Mill", "Punter")
    rows = [{"mr": f"name[The {name}], food[French]", "ref": f"The {name} serves French food."} for name in names]
    path = write_rows(tmp_path / "d.jsonl", rows)
    with pytest.raises(DataError, match=r"--prompt '\{mr\}' --completion '\{ref\}'"):
        read_examples(DataSettings(path=path), needs_completion=True)
    path = write_rows(tmp_path / "e.jsonl", [{"mr": "x", "ref": "y"}])
    with pytest.raises(DataError, match=r"'mr' +1 value, (?s:.*)say it with --prompt '\{COLUMN\}' --completion"):
        read_examples(DataSettings(path=path), needs_completion=True)


def test_a_template_without_the_other_is_asked_for(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    chat = write_rows(tmp_path / "chat.jsonl", [{"messages": turns}])
    table = write_rows(tmp_path / "table.jsonl", [{"mr": "a", "ref": "b"}])
    with pytest.raises(
        DataError, match=r"without --completion.*\n.*leave --prompt out: .* in 'messages' is read as it"
    ):
        read_examples(DataSettings(path=chat, prompt="{messages}"), needs_completion=True)
    with pytest.raises(DataError, match=r"--completion is given without --prompt.*\n.*leave --completion out"):
        read_examples(DataSettings(path=chat, completion="{messages}"), needs_completion=True)
    with pytest.raises(
        DataError, match=r"without --completion.*\n.*give --completion too; the columns are 'mr', 'ref'"
    ):
        read_examples(DataSettings(path=table, prompt="{mr}"), needs_completion=True)
    read_examples(DataSettings(path=table, prompt="{mr}"), needs_completion=False)
    half = write_rows(tmp_path / "half.jsonl", [{"mr": "a", "completion": "b"}])
    ((example,), _, _) = read_examples(DataSettings(path=half, prompt="{mr}"), needs_completion=True)
    assert (example.messages[0]["content"], example.completion) == ("a", "b")


@pytest.mark.parametrize(
    ("wrong", "words"), [(0, None), (3, "3 answers are"), (1, "1 answer is"), (20, "leave --kind")]
)
def test_answers_that_are_no_json_are_counted(wrong: int, words: str | None, tmp_path: Path) -> None:
    answers = ["an answer"] * wrong + ['{"a": 1}'] * (20 - wrong)
    path = write_rows(tmp_path / "d.jsonl", [{"prompt": f"{i}", "completion": a} for i, a in enumerate(answers)])
    settings = DataSettings(path=path, kind="structured")
    if wrong == 20:
        with pytest.raises(DataError, match=words):
            read_splits(settings, 0)
        return
    said = [line for line in read_splits(settings, 0).notes.lines if "scored as JSON" in line]
    assert [words in line for line in said] == ([True] if words else [])


def test_files_that_are_not_what_they_say(tmp_path: Path) -> None:
    cases = {
        "deep.json": (b"[" * 100_000, "nested too deeply"),
        "binary.csv": (bytes(range(256)) * 20, "binary"),
        "word.json": (b'"x"', "holds a text"),
        "object.json": (b'{"a": 1}', "without rows"),
        "data.exe": (b"x", "type '.exe' is not read"),
        "data": (b"x", "no suffix"),
        "cut.jsonl.gz": (gzip.compress(b'{"a": 1}\n' * 99)[:-9], "cannot read data"),
        "none.jsonl.gz": (b"plain", "cannot read data"),
        "cut.parquet": (b"PAR1 and no more", "cannot read data"),
        "cut.arrow": (b"ARROW1 and no more", "cannot read data"),
        "cut.xlsx": (b"PK\x03\x04 and no more", "cannot read data"),
        "other/owner:x": (b"", "no such file|missing"),
        "quotes.csv": (
            b"a,b\n" + b"y,2\n" * 500 + b'"x,1\n' + b"y,2\n" * 3000,
            "csv:502: a quote opens here and is never closed",
        ),
    }
    (tmp_path / "other").mkdir()
    for name, (content, words) in cases.items():
        if content:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=words):
            rows(tmp_path / name)
    (tmp_path / "lines.jsonl").write_bytes(b'{"a": 1}\n' * 6 + b'{"a": \n[1]\n')
    records, rejected, _ = rows(tmp_path / "lines.jsonl")
    assert len(records) == 6
    assert [r.location.rsplit(":", 1)[1] for r in rejected] == ["7", "8"]


def test_real_messy_tables(shared: Path) -> None:
    folder = shared / "messy"
    counts = {
        "latin1_preamble_totals_footnotes.csv": (497, ["Município", "População_estimada"]),
        "latin1_semicolon_mixed_eol.csv": (2666, ["CODIGO", "TITULO"]),
        "same_table_utf8_comma.csv": (2675, ["CODIGO", "TITULO"]),
        "utf8_bom_semicolon_crlf.csv": (5570, ["UF", "IBGE7", "IBGE6", "NOME DO MUNICÍPIO", "POPULAÇÃO"]),
    }
    found = {}
    for name in sorted(path.name for path in folder.iterdir()):
        found[name] = rows(folder / name)
        if name in counts:
            count, columns = counts[name]
            assert list(found[name][0][0]) == columns
            assert abs(len(found[name][0]) - count) <= 2, (name, len(found[name][0]))
    old, new = (
        {r["CODIGO"]: r["TITULO"] for r in found[name][0]}
        for name in ("latin1_semicolon_mixed_eol.csv", "same_table_utf8_comma.csv")
    )
    both = old.keys() & new.keys()
    assert sum(old[code] != new[code] for code in both) == 121
    assert any("NUL bytes" in line for line in found["null_bytes_latin1_tabs.csv"][2])


def test_footers_totals_and_marks_are_said(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    lines = [
        "place;people",
        *(f"town {i};{i * 1000}" for i in range(30)),
        "Total;435000",
        "Source: the office",
        "Notes",
    ]
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    _, rejected, notes = rows(path)
    said = " ".join(notes)
    assert "begins with a byte-order mark" in said
    assert "looks like a total" in rejected[0].reason
    assert "the last 2 lines are not rows but a footer" in said
