"""JSON as programs and people write it: lists, lines, streams, columns, and numbers that are none."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rows

from afina.core.errors import DataError
from afina.data.formats import _text
from afina.data.mapping import read_examples
from afina.data.read import read
from afina.data.rows import Notes, Record, Rejected
from afina.data.settings import DataSettings

ROWS: list[dict[str, Any]] = [
    {"text": 'a "quoted", [one]', "label": "x", "nested": {"deep": [1, {"b": "}"}]}},
    {"text": "zwei\nZeilen\u2028três", "label": "y", "nested": None},
    {"text": "", "label": "x", "nested": {"deep": []}},
]
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}


def rows(path: Path) -> tuple[list[Any], list[Rejected], list[str]]:
    notes = Notes()
    found = list(read(DataSettings(path=path), notes))
    return (
        [r.values for r in found if isinstance(r, Record)],
        [r for r in found if isinstance(r, Rejected)],
        notes.lines,
    )


def dump(value: Any, **how: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **how)


DRESSES = {
    "a list": dump(ROWS),
    "a list over lines": dump(ROWS, indent=2),
    "objects a line": "".join(dump(row) + "\n" for row in ROWS),
    "with commas": ",\n".join(map(dump, ROWS)),
    "with commas, and one at the end": "".join(dump(row) + ",\n" for row in ROWS),
    "over lines, with commas": ",\n".join(dump(row, indent=2) for row in ROWS) + "\n",
    "over lines, without": "\n".join(dump(row, indent=4) for row in ROWS),
    "one after another": "".join(map(dump, ROWS)),
    "a list that was not opened": ",\n".join(map(dump, ROWS)) + "\n]\n",
    "over lines, not opened": ",\n".join(dump(row, indent=1) for row in ROWS) + "]",
    "columns of lists": dump(COLUMNS),
    "columns over lines": dump(COLUMNS, indent=2),
    "pandas' columns": dump({name: {str(i): v for i, v in enumerate(values)} for name, values in COLUMNS.items()}),
    "pandas' index": dump({str(i): row for i, row in enumerate(ROWS)}),
    "pandas' split": dump({"columns": list(COLUMNS), "index": [0, 1, 2], "data": [list(r.values()) for r in ROWS]}),
}


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("dress", DRESSES)
def test_rows_in_any_dress(dress: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    for before in ("", "\ufeff", "\n\n  "):
        path.write_text(before + DRESSES[dress], encoding="utf-8")
        assert rows(path)[:2] == (ROWS, [])


def test_rows_in_one_object(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for value, expected in (
        ({"schema": {"fields": []}, "data": ROWS}, ROWS),
        ({"version": "1.1", "data": ROWS}, ROWS),
        ({"text": ["a", "b"]}, [{"text": "a"}, {"text": "b"}]),
        ({"name": "x", "text": ["a", "b"], "n": [1, 2]}, [{"text": "a", "n": 1}, {"text": "b", "n": 2}]),
        ({f"id-{i}": row for i, row in enumerate(ROWS * 3)}, ROWS * 3),
        ({"text": {"3": "a", "8": "b"}, "n": {"8": 2}}, [{"text": "a", "n": None}, {"text": "b", "n": 2}]),
    ):
        path.write_text(dump(value))
        assert rows(path)[:2] == (expected, [])
    for value, words in (
        ({"train": ROWS, "test": ROWS}, r"2 lists in it \('train' with 3 items, 'test' .*\n.* a file of its own"),
        ({"text": ["a"], "n": [1, 2]}, "'text' with 1 item, 'n' with 2 items"),
        ({"prompt": "a", "completion": "b"}, "without rows"),
        ({"columns": ["a", "b"], "data": [[1]]}, "item 1: 1 value for 2 columns"),
    ):
        path.write_text(dump(value))
        with pytest.raises(DataError, match=words):
            rows(path)


def test_a_single_row_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    chat = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    for row in (
        {"prompt": "a", "completion": "b"}, {"messages": chat}, {"messages": chat, "tools": [{"name": "f"}]},
        {"translation": {"en": "a", "pt": "b"}}, {"question": "q", "answers": ["a", "b"]}, {"text": ["a"]},
    ):  # fmt: skip
        path.write_text(dump(row))
        assert rows(path)[0] == [row]


def test_damage_is_said_with_its_line(tmp_path: Path) -> None:
    lines = [dump(row) for row in ROWS]
    lines.insert(1, '{"text": "cut')
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    found, rejected, _ = rows(tmp_path / "a.jsonl")
    assert found == ROWS
    assert [row.location.rsplit(":", 1)[1] for row in rejected] == ["2"]
    for text, words in (
        ('{\n "a": 1\n}\n{\n "a": b\n}\n', r"a\.json:5: not JSON \(Expecting value\)"),
        ("[\n{},\n{]", r"a\.json:3: not JSON after item 1"),
        ("[\n{}\n]\n{}", r"a\.json:4: something follows the list of 1 item"),
    ):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(DataError, match=words):
            rows(tmp_path / "a.json")


def test_values_may_lie_across_the_pieces_that_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 2, 7):
        monkeypatch.setattr(_text, "_CHUNK", size)
        for name, text in DRESSES.items():
            (tmp_path / "a.json").write_text(text, encoding="utf-8")
            assert rows(tmp_path / "a.json")[0] == ROWS, name


def test_no_number_rejects_a_row_only_where_it_is_used(tmp_path: Path) -> None:
    values = [{"text": f"t {i}", "label": "a", "score": float("nan") if i % 2 else 0.5} for i in range(6)]
    values[2]["more"] = {"deep": [float("inf")]}
    for path in (write_rows(tmp_path / "a.jsonl", values), tmp_path / "a.json"):
        if path.suffix == ".json":
            path.write_text(json.dumps(values))
        found, rejected, _ = read_examples(DataSettings(path=path), needs_completion=True)
        assert (len(found), len(rejected)) == (6, 0)
        using = DataSettings(path=path, prompt="{text}", completion="{score}")
        found, rejected, _ = read_examples(using, needs_completion=True)
        assert [example.completion for example in found] == ["0.5"] * 3
        assert {row.reason for row in rejected} == {"a value that is used is NaN or Infinity, which is no number"}
        nested = DataSettings(path=path, prompt="{text}", completion="{more}")
        assert (
            len(
                read_examples(
                    DataSettings(path=path, prompt="{text} {more?}", completion="{label}"), needs_completion=True
                )[0]
            )
            == 5
        )
        with pytest.raises(DataError, match=r"no row can be used[\s\S]*NaN or Infinity"):
            read_examples(nested, needs_completion=True)


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("A_pandas_columns.json", 24, "house_0"), ("Z_no_brackets.json", 24, "Name a colour of the kettle 0."),
        ("O_nan.jsonl", 40, "The kettle from Porto works (0)"), ("N2_mixed_list.jsonl", 40, []),
    ],
)  # fmt: skip
def test_given_cases(name: str, count: int, first: Any, shared: Path) -> None:
    path = shared.parent / "cases" / name
    found, rejected, _ = rows(path)
    assert (len(found), rejected) == (count, [])
    assert first in found[0].values()
    examples, rejected_rows, _ = read_examples(DataSettings(path=path), needs_completion=True)
    if name[0] != "N":
        assert (len(examples), len(rejected_rows)) == (count, 0)
        return
    assert (len(examples), {row.reason for row in rejected_rows}) == (30, {"the completion is empty"})
    assert [example.completion for example in examples[:3]] == ["red 1", "blue 2, green", "none 3"]


def test_conversations_that_are_bare_lists(tmp_path: Path) -> None:
    for members in (("role", "content", "user", "assistant"), ("from", "value", "human", "gpt")):
        by, text, asks, says = members
        chats = [[{by: asks, text: f"q {i}"}, {by: says, text: f"a {i}"}] for i in range(3)]
        for suffix, written in (("json", dump(chats)), ("jsonl", "\n".join(map(dump, chats)))):
            path = tmp_path / f"a.{suffix}"
            path.write_text(written)
            examples, rejected, _ = read_examples(DataSettings(path=path), needs_completion=True)
            assert ([example.said for example in examples], list(rejected)) == (["a 0", "a 1", "a 2"], [])
    (tmp_path / "a.json").write_text('[["q", "a"], [], [{"role": "user"}, 3]]')
    assert [row.reason for row in rows(tmp_path / "a.json")[1]] == [
        "it holds a list, expected an object with named columns"
    ] * 3


def test_a_pointer_of_git_lfs(shared: Path, tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 48213377\n"
    for path in (shared.parent / "cases" / "P_lfs.jsonl", tmp_path / "a.parquet", tmp_path / "b.csv", tmp_path):
        if path.parent == tmp_path:
            path.write_text(pointer)
        with pytest.raises(DataError, match=r"git-lfs pointer.*\n.*git lfs pull"):
            rows(path)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ('{"p": "q", "c": "one", "c": "two"}\n{"p": "q2", "c": "x"}\n', "c", "two"),
        ('[{"p": "q", "c": "one", "c": "two"}]', "c", "two"),
        ('{\n"p": "q",\n"c": {"d": 1, "d": 2}\n}\n{\n"p": "q",\n"c": {"d": 3}\n}', "d", {"d": 2}),
        ('{"p": ["q", "r"], "c": ["x"], "c": ["one", "two"]}', "c", "one"),
    ],
)
def test_members_that_stand_twice_are_named(text: str, key: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(text)
    found, rejected, notes = rows(path)
    assert (found[0]["c"], rejected) == (value, [])
    assert [line for line in notes if "more than once" in line] == [
        f"{path}: {key!r} stands in an object more than once: the last is read"
    ]
