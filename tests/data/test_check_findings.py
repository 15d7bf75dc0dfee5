"""What a check finds in answers, cells, parts and marks of rows: each with what, how many, a row, and the remedy."""

import json
from pathlib import Path
from typing import Any

import pytest

from afina.core.errors import DataError
from afina.data.mapping import read_examples
from afina.data.parts import parted
from afina.data.quality.checks import Check, DataFinding, check
from afina.data.settings import DataSettings


def checked(path: Path, content: Any, **settings: Any) -> Check:
    text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
    path.write_text(text, encoding="utf-8")
    return check(DataSettings(path=path, **settings))


def finding(found: Check, code: str) -> DataFinding | None:
    return next((each for each in found.findings if each.code == code), None)


HOLES = "colour,item,price\nred,lamp,5 EUR\n,mug,3 EUR\n ,pen,2 EUR\nblue,bag,9 EUR\n"


@pytest.mark.parametrize(("prompt", "rows", "words"), [
    ("What does the {colour} {item} cost?", ["3", "4"], "'colour' is empty"),
    ("{colour}: {item}", ["3", "4"], "{colour?}"),
    ("What does the {colour?} {item} cost?", [], ""),
    ("What does the {item} cost?", [], ""),
])  # fmt: skip
def test_an_empty_cell_in_a_template_is_a_finding(prompt: str, rows: list[str], words: str, tmp_path: Path) -> None:
    found = checked(tmp_path / "a.csv", HOLES, prompt=prompt, completion="{price}")
    holes = finding(found, "holes")
    assert [row.rsplit(":")[-1] for row in holes.rows] == rows if holes else not rows
    if holes:
        assert (holes.severity, holes.count) == ("warning", 2)
        assert words in holes.text
        assert "look first at" in found.verdict
        assert "holes" in found.verdict
        assert not any("is empty" in line for line in found.notes)  # said once


def test_what_is_left_out_is_a_finding_that_names_it(tmp_path: Path) -> None:
    found = checked(tmp_path / "a.csv", "Report\n\ntext,label,who\n" + "".join(f"t {i},{i % 2},x\n" for i in range(60)))
    above, unused = finding(found, "before header"), finding(found, "unused")
    assert (above.count, above.rows, above.facts) == (1, [f"{tmp_path / 'a.csv'}:1"], {"titles": ["Report"]})
    assert unused.facts == {"columns": ["who"]}
    assert not [line for line in found.notes if "left out" in line or "not used" in line]  # said once


def test_holes_in_answers_contexts_and_what_stands_for_nothing(tmp_path: Path) -> None:
    text = "first,last,q\nAda,,who?\nAlan,Turing,and who?\nnan,Hopper,who else?\n"
    found = checked(tmp_path / "a.csv", text, prompt="{q}", completion="{first} {last}")
    assert [(each.count, each.text.partition(":")[2].split(" in ")[0]) for each in found.findings
            if each.code == "holes"] == [
        (1, " 'last' is empty, as merged cells are once they are exported,"), (1, " 'first' is 'nan'"),
    ]  # fmt: skip
    asked = {"prompt": "{about} {question}", "completion": "{answer}"}
    found = checked(tmp_path / "b.csv", "about,question,answer\nIt is red.,What?,red\n,Why?,so\n", **asked)
    assert finding(found, "holes").rows == [f"{tmp_path / 'b.csv'}:3"]
    found = checked(tmp_path / "c.csv", "instruction,input,output\nSay,it,yes\nSing,,no\n")
    assert finding(found, "holes") is None  # an input may be empty
    _, _, notes = read_examples(DataSettings(path=tmp_path / "b.csv", **asked), needs_completion=True)
    assert any("'about' is empty" in line for line in notes.lines)  # training says it too


@pytest.mark.parametrize("names", [
    ("train.jsonl", "", "tst.jsonl"), ("trn.jsonl", "dev.jsonl", "tst.jsonl"), ("d_trn.jsonl", "d_vld.jsonl", ""),
    ("treino.jsonl", "validación.jsonl", "tests.jsonl"), ("x-trn-0.jsonl", "devel.jsonl", "devtest.jsonl"),
])  # fmt: skip
def test_short_and_foreign_names_of_parts(names: tuple[str, str, str], tmp_path: Path) -> None:
    for place, name in enumerate(filter(None, names)):
        (tmp_path / name).write_text(json.dumps({"prompt": f"Who is {place}?", "completion": f"It {place}"}) + "\n")
    settings = parted(DataSettings(path=tmp_path))
    paths = (settings.path, settings.eval_path, settings.test_path)
    assert [bool(path) for path in paths] == [bool(name) for name in names]
    assert check(DataSettings(path=tmp_path)).rows_in == 1


def test_a_file_beside_train_that_names_no_part_is_said(tmp_path: Path) -> None:
    for name in ("train.jsonl", "more.jsonl"):
        (tmp_path / name).write_text('{"prompt": "a", "completion": "b"}\n')
    assert any("more.jsonl is trained on too" in note for note in check(DataSettings(path=tmp_path)).notes)
    (tmp_path / "tst.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    said = " ".join(check(DataSettings(path=tmp_path)).notes)
    assert "trained on too" not in said
    assert "not read, for they belong to no part: more.jsonl" in said


def test_one_answer_in_all_rows_is_not_ready(tmp_path: Path) -> None:
    rows = [{"text": f"The kettle {i} came", "label": "NEG"} for i in range(10)]
    found = checked(tmp_path / "a.jsonl", rows)
    assert not found.ready
    assert "all 10 rows have the same answer, 'NEG'" in finding(found, "one answer").text
    rows[3]["label"] = "POS"
    assert finding(checked(tmp_path / "a.jsonl", rows), "one answer") is None
    assert finding(checked(tmp_path / "b.jsonl", rows[:1]), "one answer") is None  # one row is another finding
    assert finding(checked(tmp_path / "c.jsonl", [{"text": f"only text {i}"} for i in range(9)]), "one answer") is None


@pytest.mark.parametrize(("answer", "said"), [
    ("N/A", True), ("null", True), ("nan", True), ("#REF!", True), (" n/a ", True), ("-", True), ("nothing", False),
    ("Nan is a name", False), ("0", False), ("no", False),
])  # fmt: skip
def test_answers_that_stand_for_none_are_said_and_kept(answer: str, said: bool, tmp_path: Path) -> None:
    rows = [{"question": f"What is {i}?", "answer": answer if i in (2, 4) else f"It is {i}"} for i in range(9)]
    found = checked(tmp_path / "a.jsonl", rows)
    nothing = finding(found, "no answers")
    assert bool(nothing) == said
    assert found.rows_kept == 9
    if nothing:
        assert (nothing.severity, nothing.count) == ("warning", 2)
        assert [row[-2:] for row in nothing.rows] == [":3", ":5"]
        assert "delete these rows" in nothing.text


def test_a_label_none_is_a_note(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": ["none", "joy"][i % 2]} for i in range(20)]
    assert finding(checked(tmp_path / "a.jsonl", rows), "no answers").severity == "note"


def test_fields_of_which_none_is_filled_are_a_note(tmp_path: Path) -> None:
    rows = [{"question": f"text {i}", "answer": "{}" if i % 2 else '{"n": 1}'} for i in range(20)]
    assert finding(checked(tmp_path / "a.jsonl", rows), "no answers").severity == "note"


@pytest.mark.parametrize(("rows", "labels"), [
    (["bio;math", "bio", "math;chem", "chem;bio", "math", "bio;math"], "3 labels, joined by ';'"),
    (["a, b", "b, c", "a", "c", "a, c"], "3 labels, joined by ','"),
    (["x|y", "y|z", "z|x"], "3 labels, joined by '|'"),
    (["Paris, France", "Lyon, France", "Rome, Italy", "Pisa, Italy"], None),  # places
    (["1,5", "2,5", "1,2"], None),  # numbers
    (["Well, it is so because of that", "No, it is not so at all", "Well, no"], None),
])  # fmt: skip
def test_sets_of_labels_are_said(rows: list[str], labels: str | None, tmp_path: Path) -> None:
    found = checked(tmp_path / "a.jsonl", [{"text": f"paper {i}", "answer": a} for i, a in enumerate(rows)],
                    prompt="{text}", completion="{answer}")  # fmt: skip
    sets = finding(found, "label sets")
    assert (labels in sets.text) if labels else sets is None


@pytest.mark.parametrize(("source", "target", "doubted"), [
    ({5}, {9}, True), ({9}, {5}, True), ({5, 6}, {12}, True), ({5}, {5}, False), ({5}, set(), False),
    (set(), {3, 4}, False), ({5, 7}, {5, 7}, False),
])  # fmt: skip
def test_blank_lines_in_different_places_are_not_ready(
    source: set[int], target: set[int], doubted: bool, tmp_path: Path
) -> None:
    for name, blank in (("a.en", source), ("a.pt", target)):
        lines = ("" if i in blank else f"{name} line {i}" for i in range(1, 22))
        (tmp_path / name).with_suffix(f"{Path(name).suffix}.txt").write_text("\n".join(lines) + "\n")
    settings = DataSettings(path=tmp_path / "a.en.txt", target=tmp_path / "a.pt.txt")
    found = check(settings)
    pairs = finding(found, "pairs")
    assert bool(pairs) == doubted
    if pairs:
        assert not found.ready
        assert f"a.en.txt:{min(source)}" in pairs.text
        assert f"a.pt.txt:{min(target)}" in pairs.text
        with pytest.raises(DataError, match="may not answer one another"):
            read_examples(settings, needs_completion=True)


def test_what_an_annotator_refused_is_not_learned(tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": "AB"[i % 2], "answer": ["accept", "reject", "ignore"][i % 3]}
            for i in range(9)]  # fmt: skip
    found = checked(tmp_path / "a.jsonl", rows)
    assert (found.rows_kept, found.rows_reported) == (3, 6)
    assert finding(found, "many rejected") is None  # they were meant to be left out
    assert any("'answer' is reject, which marks it as not wanted" in line for line in found.reasons)
    rows = [{"question": f"Accept {i}?", "answer": ["accept", "reject"][i % 2]} for i in range(6)]
    assert checked(tmp_path / "b.jsonl", rows).rows_kept == 6  # here they are the answers
    rows = [{"text": f"t {i}", "label": "AB"[i % 2], "answer": ["accept", "reject", "maybe"][i % 3]} for i in range(6)]
    assert checked(tmp_path / "c.jsonl", rows).rows_kept == 6  # another vocabulary
    rows = [{"text": f"t {i}", "label": "AB"[i % 2], "status": ["submitted", "discarded"][i % 2]} for i in range(6)]
    assert checked(tmp_path / "d.jsonl", rows).rows_kept == 3


@pytest.mark.parametrize("values", [(True, False), ("True", "False"), ("true", "false")])
def test_answers_marked_as_bad_are_not_learned(values: tuple[Any, Any], tmp_path: Path) -> None:
    rows = [{"prompt": f"q {i}", "completion": f"a {i}", "label": values[i % 2]} for i in range(8)]
    found = checked(tmp_path / "a.jsonl", rows)
    assert (found.rows_kept, found.ready) == (4, True)
    assert any("'label' is" in line and "not wanted" in line for line in found.reasons)
    given = checked(tmp_path / "a.jsonl", rows, prompt="{prompt}", completion="{completion}")
    assert given.rows_kept == 4  # with templates as without
    asked = checked(tmp_path / "a.jsonl", rows, prompt="{prompt} {completion}", completion="{label}")
    assert asked.rows_kept == 8


def test_flags_that_speak_against_rows_are_findings(tmp_path: Path) -> None:
    for name, value in (("weight", 0), ("is_correct", False), ("loss", "0.0")):
        rows = [{"prompt": f"q {i}", "completion": f"a {i}", name: value if i < 2 else 1} for i in range(8)]
        found = checked(tmp_path / "a.jsonl", rows)
        verdicts = finding(found, "verdicts")
        assert (found.rows_kept, verdicts.count, "verdicts" in found.verdict) == (8, 2, True)
        assert f"{name!r} is {value}" in verdicts.text
        assert "delete these rows" in verdicts.text


def test_all_parts_of_a_column_are_named_with_their_rows(tmp_path: Path) -> None:
    parts = ["train"] * 5 + ["test"] * 2 + ["val"] * 3
    rows = [{"prompt": f"q {i}", "completion": f"a {i}", "split": part} for i, part in enumerate(parts)]
    found = checked(tmp_path / "a.jsonl", rows)
    assert "(train 5, test 2, val 3)" in finding(found, "parts").text
    assert "parts" in found.verdict
    assert finding(checked(tmp_path / "a.jsonl", rows[:5]), "parts") is None  # one part alone
    rows = [{"prompt": f"q {i}", "completion": f"a {i}", "set": each} for i, each in enumerate(["lego", "duplo"] * 3)]
    assert finding(checked(tmp_path / "a.jsonl", rows), "parts") is None


@pytest.mark.parametrize(("last", "kept"), [
    ("TOTAL,20", 1), ("Grand total:,1.200", 1), ("Gesamt,7", 1), ("Итого,7", 1), ("Total,all of it", 2),
    ("Total,", 1), ("Totally,20", 2),
])  # fmt: skip
def test_totals_are_left_out(last: str, kept: int, tmp_path: Path) -> None:
    found = checked(tmp_path / "a.csv", f"question,answer\nWho?,Me\n{last}\n")
    assert (found.rows_in, found.rows_kept) == (2, kept)
    if kept == 1 and last != "Total,":
        assert any("looks like a total" in line for line in found.reasons)
