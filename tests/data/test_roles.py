"""What is suggested for tables whose columns' names are no known layout."""

import itertools
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import more_role_tables  # noqa: F401 - adds its tables
import pytest
from conftest import write_rows
from role_tables import TABLES, Known, Row, hidden, paragraph, phrases, sentence, token

from afina.core.config import changed
from afina.core.errors import DataError, Unmapped
from afina.data.layouts import recognise
from afina.data.mapping import read_examples
from afina.data.quality.checks import check
from afina.data.read import read
from afina.data.roles import suggest
from afina.data.roles.table import Reading, Table
from afina.data.roles.tasks import TASKS, Task
from afina.data.rows import Notes, Record
from afina.data.settings import DataSettings

Verdict = Literal["right", "not sure", "wrong"]
_SEEDS = (11, 12)  # of rows; the rules were made with others


def verdict(known: Known) -> Verdict:
    """Of what is suggested for a table: the pair, the kind of task and the references must be the known ones."""
    found = suggest(known.rows)
    if found is None:
        return "not sure" if known.answer else "right"
    if known.answer is None or found.task != known.task:
        return "wrong"
    if not known.inputs:
        return "right" if found.settings["map"] == f"messages={known.answer}" else "wrong"
    asked = set(re.findall(r"\{([^{}]+?)\?*\}", found.settings["prompt"]))
    same = found.settings["completion"] == f"{{{known.answer}}}" and found.settings.get("references") in (
        ",".join(known.references) or None,
        *known.references,
    )
    return "right" if same and {*known.inputs} <= asked <= {*known.inputs, *known.extra} else "wrong"


@pytest.mark.parametrize("seed", _SEEDS)
def test_nine_in_ten_tables_are_read_right_and_none_wrong(seed: int) -> None:
    verdicts = {name: verdict(make(random.Random(seed))) for name, make in TABLES.items()}
    assert len(verdicts) >= 60
    assert not [name for name, each in verdicts.items() if each == "wrong"]
    assert Counter(verdicts.values())["right"] >= 0.9 * len(verdicts)
    named = ("dialogue_summaries", "headless_spam", "nested_sql", "headless_parallel_with_attribution")
    assert {verdicts[name] for name in named} == {"right"}


def test_without_names_most_tables_are_read_right_and_few_wrong() -> None:
    tables = [hidden(make(random.Random(_SEEDS[0]))) for make in TABLES.values()]
    counts = Counter(map(verdict, tables))
    assert counts["right"] >= 0.7 * len(tables)
    assert counts["wrong"] <= 0.03 * len(tables)


@pytest.mark.parametrize("name", [*TABLES])
def test_what_is_suggested_reads_every_row(name: str, tmp_path: Path) -> None:
    known = TABLES[name](random.Random(_SEEDS[0]))
    assert recognise([*known.rows[0]], known.rows) is None, "a known layout shows nothing of roles"
    path = write_rows(tmp_path / "rows.jsonl", known.rows)
    with pytest.raises(Unmapped) as told:
        read_examples(DataSettings(path=path), needs_completion=True)
    error = told.value
    assert all(f"'{column}" in str(error) for column in known.rows[0] if not isinstance(known.rows[0][column], dict))
    if error.task is None:
        assert "{COLUMN}" in error.remedy
        return
    assert error.json()["error"]["suggestion"] == {"task": error.task, **error.mapping}
    examples, rejected, _ = read_examples(changed(DataSettings(path=path), dict(error.mapping)), needs_completion=True)
    assert len(examples) == len(known.rows)
    assert not rejected
    if len(known.references) > 1:
        assert all(len(example.references) == len(known.references) for example in examples)


def _label_studio(i: int) -> dict[str, Any]:
    result = [{"from_name": "mood", "type": "choices", "value": {"choices": [["Negative", "Positive"][i % 2]]}}]
    return {"id": i, "data": {"text": f"The {i} lamps came {['late', 'broken'][i % 2]}"},
            "annotations": [{"id": 10 * i, "completed_by": 1, "result": result}]}  # fmt: skip


def _discord(i: int) -> dict[str, Any]:
    return {"id": str(i), "content": f"where is lamp {i}?", "reference": {"messageId": str(i - 1)} if i else None}


def _prodigy(i: int) -> dict[str, Any]:
    return {"text": f"The {i} lamps came {['late', 'broken'][i % 2]}", "_input_hash": i,
            "options": [{"id": "A", "text": "Negative"}, {"id": "B", "text": "Positive"}], "accept": ["AB"[i % 2]],
            "answer": ["accept", "accept", "reject"][i % 3]}  # fmt: skip


@pytest.mark.parametrize("make", [_label_studio, _discord, _prodigy])
def test_what_programs_keep_is_no_answer(make: Callable[[int], dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(Unmapped) as told:
        read_examples(DataSettings(path=write_rows(tmp_path / "d.jsonl", map(make, range(40)))), needs_completion=True)
    assert told.value.mapping.get("completion") not in ("{annotations}", "{reference}", "{answer}")


def test_check_says_the_suggestion_in_one_finding(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", TABLES["headless_spam"](random.Random(0)).rows)
    finding = check(DataSettings(path=path)).findings[0]
    assert finding.code == "mapping"
    assert "Likeliest: classification" in finding.text
    assert "--prompt '{column_2}' --completion '{column_1}' --kind classification" in finding.text


def _csv(tmp_path: Path, text: str) -> Unmapped:
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(Unmapped) as told:
        read_examples(DataSettings(path=path), needs_completion=True)
    return told.value


def test_a_tab_separated_file_without_header(tmp_path: Path) -> None:
    r = random.Random(5)
    lines = (f"{'ham' if i % 3 else 'spam'}\t{sentence(r) if i % 3 else f'WIN a prize {token(r)}'}" for i in range(40))
    error = _csv(tmp_path, "\n".join(lines))
    assert error.task == "classification"
    assert error.mapping == {"prompt": "{column_2}", "completion": "{column_1}", "kind": "classification"}


@pytest.mark.parametrize(
    "column",
    [
        lambda i: f"{i:05d}",  # a number that counts
        lambda i: f"user-{i * 7919 % 1000:03d}",
        lambda i: f"2021-03-{i % 28 + 1:02d}T10:00:00Z",
        lambda i: f"https://example.org/{i}",
        lambda i: ("train", "test")[i % 2],
        lambda i: ("en", "pt")[i % 2],
        lambda i: "same",
        lambda i: None,
        lambda i: i * 0.25,
    ],
)
def test_what_is_neither_asked_nor_answered(column: Callable[[int], object]) -> None:
    r = random.Random(3)
    assert suggest([{"zz": column(i), "body": paragraph(r, 1, 3)} for i in range(60)]) is None
    both = [{"zz": column(i), **dict(zip(("aa", "bb"), phrases(r, "en", "de"), strict=True))} for i in range(60)]
    found = suggest(both)
    assert found is not None
    assert found.task == "translation"
    assert found.settings["prompt"].endswith("{aa}")
    assert found.settings["completion"] == "{bb}"


def test_small_and_odd_tables_raise_nothing() -> None:
    assert suggest([{"x": "one text", "y": "another text"}]) is None
    for rows_ in ([{"a": None}], [{}], [{"a": float("nan"), "b": float("inf")}] * 3, [{"": "x", "{": "y"}] * 5):
        assert suggest(rows_) is None
    ragged: list[Row] = [{"a": sentence(random.Random(i))} if i % 2 else {"b": [1, {"c": None}]} for i in range(50)]
    assert suggest(ragged) is None


def test_several_columns_of_references(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "rows.jsonl", [{"t": "text", "s1": "one", "s2": None, "s3": ["two", "three"], "a,b": "x"}]
    )
    given = DataSettings(path=path, prompt="{t}", completion="{s1}", references="s1, s2,s3")
    (example,), _, notes = read_examples(given, needs_completion=True)
    assert example.references == ("one", "two", "three")
    assert "'s2'" not in " ".join(notes.lines)
    (example,), _, _ = read_examples(changed(given, {"references": "a,b"}), needs_completion=True)
    assert example.references == ("x",)
    with pytest.raises(DataError, match="s9"):
        read_examples(changed(given, {"references": "s1,s9"}), needs_completion=True)


@pytest.mark.parametrize(
    ("name", "asked", "answered", "task"),
    [
        ("e2e/train.jsonl", "mr", "text", "text generation"),
        ("mt_geneval_en_pt/train.csv", "english", "portuguese", "translation"),
        ("sentiment_pt/train.csv", "text", "label", "classification"),
        ("banking77/train.csv", "text", "category", "classification"),
        ("restaurant8k_slots/train.jsonl", "utterance", "slots", "structured output"),
        ("scitldr/train.jsonl", "source", "target", "summarisation"),
    ],
)
def test_real_tables_under_names_that_say_nothing(
    shared: Path, tmp_path: Path, name: str, asked: str, answered: str, task: str
) -> None:
    read_ = itertools.islice(read(DataSettings(path=shared / name), Notes()), 2000)
    rows_ = [row.values for row in read_ if isinstance(row, Record)]
    new = {column: f"c{i}" for i, column in enumerate(rows_[0])}
    if "title" in new:  # a summary, too, where no name says which is meant
        new[answered] = "tldrs"
    found = suggest([{new[key]: value for key, value in row.items()} for row in rows_])
    assert found is not None
    assert found.task == task
    assert f"{{{new[asked]}" in found.settings["prompt"]
    assert found.settings["completion"].startswith(f"{{{new[answered]}")


def test_a_kind_of_task_from_outside() -> None:
    def readings(table: Table) -> Iterator[Reading]:
        for column in table.of("number"):
            yield Reading(table.sentences[:1], column, 9.0, ["it was asked for"])

    rows_ = [{"body": sentence(random.Random(i)), "weight": i * 0.25} for i in range(60)]
    with TASKS.added(Task("estimation", readings)):
        found = suggest(rows_)
    assert found is not None
    assert found.task == "estimation"
    assert found.settings == {"prompt": "{body}", "completion": "{weight}"}
    assert found.reason == "'body' → 'weight': it was asked for"
    assert suggest(rows_) is None


def test_a_wide_table_takes_no_longer_than_others() -> None:
    names = [f"question_{a}{b}" for a, b in itertools.product("abcdefghijklmnopqrst", repeat=2)]
    draw = random.Random(0)
    rows = [{name: sentence(draw) for name in names} for _ in range(40)]
    start = time.process_time()
    assert suggest(rows) is None
    assert time.process_time() - start < 10  # it was 20 minutes
    known = [
        {**row, "review": f"{sentence(draw)} {'good' if i % 2 else 'bad'} thing", "label": "+-"[i % 2]}
        for i, row in enumerate(rows)
    ]
    found = suggest(known)
    assert found is None or found.settings["completion"] == "{label}"
