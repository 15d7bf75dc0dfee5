"""Folders as people and programs leave them: parts, what is hidden, what is no data, data sets of the hub."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from conftest import write_rows

from afina.core import events
from afina.core.errors import DataError
from afina.core.events import Progress
from afina.data.parts import part_to_score, parted
from afina.data.quality.checks import check
from afina.data.read import read
from afina.data.rows import Notes, Record
from afina.data.settings import DataSettings
from afina.data.splits import read_splits
from afina.ui.cli import main


def put(folder: Path, *names: str) -> Path:
    """Files of a row each, which says their name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {"prompt": name, "completion": "x"}
        if name.endswith((".parquet", ".arrow")):
            write_arrow(path, [row])
        elif name.endswith((".jsonl", ".json", ".csv")):
            texts = {".json": json.dumps([row]), ".csv": f"prompt,completion\n{name},x\n"}
            path.write_text(texts.get(path.suffix, json.dumps(row)), encoding="utf-8")
        else:
            path.write_text(name)
    return folder


def write_arrow(path: Path, rows: list[dict[str, Any]], features: dict[str, Any] | None = None) -> None:
    table = pyarrow.Table.from_pylist(rows)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
        return
    with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def names(path: Path | None) -> list[str]:
    if path is None:
        return []
    return [row.values["prompt"] for row in read(DataSettings(path=path), Notes()) if isinstance(row, Record)]


TRAIN, HELD_OUT, TEST = "path", "eval_path", "test_path"
PARTS: list[dict[str, list[str]]] = [
    {TRAIN: ["train.jsonl"], HELD_OUT: ["validation.jsonl"], TEST: ["test.jsonl"]},
    {TRAIN: ["train.csv"], HELD_OUT: ["dev.csv"], TEST: ["test.csv"]},
    {TRAIN: ["train.json"], HELD_OUT: ["valid.json"], TEST: []},
    {TRAIN: ["train.json"], HELD_OUT: ["eval.json"], TEST: []},
    {TRAIN: ["train.json"], HELD_OUT: ["val.json"], TEST: ["eval.json"]},
    {TRAIN: ["train.json"], HELD_OUT: ["eval.json"], TEST: ["test.json"]},
    {TRAIN: ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"], HELD_OUT: [],
     TEST: ["data/test-00000-of-00001.parquet"]},
    {TRAIN: ["data/train/a.jsonl", "data/train/b.jsonl"], HELD_OUT: ["data/dev/a.jsonl"], TEST: ["data/test/a.jsonl"]},
    {TRAIN: ["en/train.jsonl", "pt/train.jsonl"], HELD_OUT: ["en/val.jsonl", "pt/val.jsonl"], TEST: ["en/test.jsonl"]},
    {TRAIN: ["my_data.train.jsonl"], HELD_OUT: ["my_data.dev.jsonl"], TEST: ["my_data.test.jsonl"]},
    {TRAIN: ["SquadTrain.jsonl"], HELD_OUT: ["SquadDev.jsonl"], TEST: []},
    {TRAIN: ["trainset.csv"], HELD_OUT: [], TEST: ["testset.csv"]},
    {TRAIN: ["treino.csv"], HELD_OUT: ["validação.csv"], TEST: ["teste.csv"]},
    {TRAIN: ["rows.jsonl"], HELD_OUT: [], TEST: ["test.jsonl"]},
    {TRAIN: ["training/latest.csv"], HELD_OUT: ["validation/latest.csv"], TEST: []},
]  # fmt: skip


@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: " ".join(map(str, parts.values())))
def test_parts_are_taken_as_such(parts: dict[str, list[str]], tmp_path: Path) -> None:
    put(tmp_path, *parts[TRAIN], *parts[HELD_OUT], *parts[TEST], ".ipynb_checkpoints/train-checkpoint.jsonl")
    settings = parted(DataSettings(path=tmp_path))
    assert {key: names(getattr(settings, key)) for key in parts} == {key: sorted(each) for key, each in parts.items()}
    assert parted(settings) == settings
    assert names(tmp_path) == sorted(parts[TRAIN])
    assert names(part_to_score(DataSettings(path=tmp_path), True)[0]) == sorted(parts[TEST] or parts[HELD_OUT])


def test_what_is_scored_has_answers(tmp_path: Path) -> None:
    put(tmp_path, "train.jsonl", "validation.jsonl", "test.jsonl")
    asked = DataSettings(path=tmp_path)
    tests, validation = (Path(f"{tmp_path}:{part}") for part in ("test", "validation"))
    assert part_to_score(asked, True) == (tests, [f"{tmp_path}: {tests} is read, of its parts"])
    for row in ({"prompt": "x"}, {"prompt": "x", "completion": ""}):
        write_rows(tmp_path / "test.jsonl", [row] * 3)
        chosen, (line,) = part_to_score(asked, True)
        assert chosen == validation
        assert line.endswith(f"; {tests} not, for no row of it has an answer")
        assert part_to_score(asked, False)[0] == tests  # to be answered
    (tmp_path / "validation.jsonl").unlink()
    assert part_to_score(asked, True)[0] == tests  # whoever reads it is told that there is nothing to score
    assert part_to_score(DataSettings(path=tests), True) == (tests, [])


@pytest.mark.parametrize(
    "files",
    [["a.jsonl", "b.jsonl"], ["train.jsonl"], ["train.jsonl", "extra.jsonl"],
     ["contest.csv", "latest.csv", "trainer.csv"],
     ["train_test.jsonl", "other.jsonl"], ["devices.jsonl", "evaluator.jsonl"]],
    ids=" ".join,
)  # fmt: skip
def test_files_without_parts_are_read_as_one(files: list[str], tmp_path: Path) -> None:
    put(tmp_path, *files)
    assert parted(DataSettings(path=tmp_path)) == DataSettings(path=tmp_path)
    assert names(tmp_path) == sorted(files)


def test_what_is_hidden_and_what_is_no_data_is_not_read(tmp_path: Path) -> None:
    put(
        tmp_path, "a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "._a.jsonl", ".git/b.jsonl", "__MACOSX/a.jsonl",
        "sub/.DS_Store", "sub/.cache/c.jsonl", "state.json", "dataset_info.json", "dataset_dict.json", "README.txt",
        "LICENSE.txt", "requirements.txt", "~$a.csv", "sub/b.jsonl", ".gitattributes", "rejected.jsonl",
        "prepared.json",
    )  # fmt: skip
    assert names(tmp_path) == ["a.jsonl", "sub/b.jsonl"]
    hidden = put(tmp_path / ".hidden", "c.jsonl")
    assert names(hidden) == names(hidden / "c.jsonl") == ["c.jsonl"]  # where it is named itself


def test_the_splits_are_those_of_the_parts_and_it_is_said_once(tmp_path: Path) -> None:
    for part, count in (("train", 20), ("valid", 5), ("test", 7)):
        write_rows(tmp_path / f"{part}.jsonl", [{"prompt": f"{part} {i}", "completion": "x"} for i in range(count)])
    write_rows(tmp_path / "extra.jsonl", [{"prompt": "extra", "completion": "x"}])
    splits = read_splits(DataSettings(path=tmp_path), 0)
    assert [int(mask.sum()) for mask in (splits.train, splits.held_out, splits.test)] == [20, 5, 7]
    (said,) = [line for line in splits.notes.lines if "is trained on" in line]
    assert said.endswith(
        f"{tmp_path}:train is trained on (train.jsonl); {tmp_path}:validation is held out (valid.jsonl); "
        f"{tmp_path}:test is the test split (test.jsonl)"
    )
    assert any("they belong to no part: extra.jsonl" in line for line in splits.notes.lines)
    other = put(tmp_path / "other", "h.jsonl") / "h.jsonl"
    (tmp_path / "extra.jsonl").unlink()
    drawn = read_splits(DataSettings(path=tmp_path, held_out=0.25), 0)
    assert [int(mask.sum()) for mask in (drawn.train, drawn.held_out, drawn.test)] == [15, 5, 7]
    assert any(line.endswith(f"{tmp_path}:validation not used") for line in drawn.notes.lines)
    given = read_splits(DataSettings(path=tmp_path, eval_path=other, test=0.25), 0)
    assert [int(mask.sum()) for mask in (given.train, given.held_out, given.test)] == [15, 1, 5]
    assert any("valid" in line and "not used" in line for line in given.notes.lines)


def test_a_part_without_answers_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As competitions give their tests."""
    rows = [{"id": i, "text": f"t {i}", "label": "ab"[i % 2]} for i in range(20)]
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "valid.jsonl", [{**row, "text": f"v {row['id']}"} for row in rows[:6]])
    write_rows(tmp_path / "test.jsonl", [{"id": row["id"], "text": f"x {row['id']}"} for row in rows])
    write_rows(tmp_path / "sample_submission.jsonl", [{"id": row["id"], "label": "a"} for row in rows])
    for given in ({}, {"prompt": "{text}", "completion": "{label}"}):
        splits = read_splits(DataSettings(path=tmp_path, **given), 0)
        assert [int(mask.sum()) for mask in (splits.train, splits.held_out, splits.test)] == [20, 6, 0]
        assert any(f"{tmp_path}:test not used, for no row of it has an answer" in line for line in splits.notes.lines)
    (tmp_path / "valid.jsonl").write_text("\n")
    assert parted(DataSettings(path=tmp_path)).eval_path is None
    main(["data", "check", str(tmp_path)])
    said = capsys.readouterr().out
    assert f"{tmp_path}:train: not used: 'id'" in said  # no word between colons is a picture
    assert f"{tmp_path}:validation not used, for no row of it has an answer" in said
    (tmp_path / "test.jsonl").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 4821\n")
    with pytest.raises(DataError, match="git-lfs pointer"):
        parted(DataSettings(path=tmp_path))


def test_what_lies_beside_and_is_not_read_is_named(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", "more.zip", "notes.docx", "rows", "img/photo.png", "README.md", "LICENSE", "load.sh",
        "_SUCCESS", ".DS_Store", "dataset_info.json")  # fmt: skip
    notes = Notes()
    list(read(DataSettings(path=tmp_path), notes))
    assert notes.lines == [
        f"{tmp_path}: not read, for their types are not: img/photo.png, more.zip, notes.docx and 1 more"
    ]


def test_parts_can_be_named(tmp_path: Path) -> None:
    put(tmp_path, "train.jsonl", "dev.jsonl")
    assert names(Path(f"{tmp_path}:train")) == ["train.jsonl"]
    assert names(Path(f"{tmp_path}:validation")) == ["dev.jsonl"]
    with pytest.raises(DataError, match=r"no part 'validatoin'\. Did you mean 'validation'\?"):
        names(Path(f"{tmp_path}:validatoin"))
    assert DataSettings(path=Path(f"{tmp_path}:train")).name == tmp_path.name
    assert parted(DataSettings(path=Path(f"{tmp_path}:train"))).eval_path is None
    put(tmp_path / "one", "train.jsonl", "extra.jsonl")
    assert names(Path(f"{tmp_path}/one:train")) == ["train.jsonl"]
    put(tmp_path / "only", "test.jsonl")
    assert names(Path(f"{tmp_path}/only/t*.jsonl")) == ["test.jsonl"]  # which the user asked for
    with pytest.raises(DataError, match="has no part to train on"):
        parted(DataSettings(path=tmp_path / "only"))
    assert names(Path(f"{tmp_path}/d*.jsonl")) == ["dev.jsonl"]
    assert parted(DataSettings(path=Path(f"{tmp_path}/*.jsonl"))).eval_path == Path(f"{tmp_path}/*.jsonl:validation")


LABELS = {"text": {"dtype": "string", "_type": "Value"}, "label": {"names": ["no", "yes"], "_type": "ClassLabel"}}


def saved(folder: Path, count: int) -> Path:
    """A data set as `save_to_disk` leaves it, with the cache of a `map` beside it."""
    folder.mkdir(parents=True)
    write_arrow(folder / "data-00000-of-00001.arrow", [{"text": f"t {i}", "label": i % 2} for i in range(count)])
    write_arrow(folder / "cache-0123456789.arrow", [{"text": "cached", "label": 0}] * 50)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": LABELS}))
    return folder


def test_data_sets_that_were_saved_to_disk(tmp_path: Path) -> None:
    one = saved(tmp_path / "one", 12)
    found = check(DataSettings(path=one))
    assert (found.rows_in, found.labels) == (12, {"no": 6, "yes": 6})
    assert f"{one}: the numbers in 'label' are read as their class names: 0 is 'no', 1 is 'yes'" in found.notes
    several = tmp_path / "several"
    for split, count in (("train", 30), ("test", 8), ("unsupervised", 5)):
        saved(several / split, count)
    (several / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test", "unsupervised"]}))
    splits = read_splits(DataSettings(path=several), 0)
    assert int(splits.test.sum()) == 8
    assert len(splits.train) == 30
    assert any(f"{several}:unsupervised not used" in line for line in splits.notes.lines)


def test_the_hubs_own_library_writes_what_is_read_here(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = {"text": [f"t {i}" for i in range(6)], "label": [0, 1, 0, 1, 0, -1]}
    made = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": made, "validation": made.select(range(2))}).save_to_disk(tmp_path / "disk")
    made.to_parquet(tmp_path / "a.parquet")
    for path in (tmp_path / "disk", tmp_path / "a.parquet"):
        found = [row.values["label"] for row in read(DataSettings(path=path), Notes()) if isinstance(row, Record)]
        assert found == ["no", "yes", "no", "yes", "no", None]
    assert parted(DataSettings(path=tmp_path / "disk")).eval_path == Path(f"{tmp_path / 'disk'}:validation")


def clone(folder: Path, head: str, *more: str) -> Path:
    put(folder, *more, "LICENSE")
    (folder / "README.md").write_text(f"---\n{head}\n---\n# A data set\n", encoding="utf-8")
    (folder / ".gitattributes").write_text("*.parquet filter=lfs\n")
    return folder


CONFIGS = """configs:
- config_name: en
  data_files:
  - split: train
    path: en/a-*.parquet
  - split: test
    path: [en/b.parquet]
- config_name: pt
  data_dir: pt
  data_files: {train: "*.jsonl", dev: held/*.jsonl}
"""


def test_clones_of_the_hubs_data_sets(tmp_path: Path) -> None:
    files = (
        "en/a-0.parquet",
        "en/a-1.parquet",
        "en/b.parquet",
        "pt/c.jsonl",
        "pt/held/d.jsonl",
        "more.jsonl",
        "load.py",
    )
    folder = clone(tmp_path / "set", CONFIGS, *files)
    with pytest.raises(DataError, match=r"has 2 configurations: en, pt\n.*name one, such as .*set:en"):
        names(folder)
    english, portuguese = (parted(DataSettings(path=Path(f"{folder}:{name}"))) for name in ("en", "pt"))
    assert (names(english.path), names(english.test_path)) == (["en/a-0.parquet", "en/a-1.parquet"], ["en/b.parquet"])
    assert (names(portuguese.path), names(portuguese.eval_path)) == (["pt/c.jsonl"], ["pt/held/d.jsonl"])
    notes = Notes()
    list(read(DataSettings(path=english.path), notes))
    assert any("load.py is not executed" in line for line in notes.lines)
    with pytest.raises(DataError, match=r"no configuration 'fr'"):
        names(Path(f"{folder}:fr:train"))
    marked = clone(tmp_path / "marked", CONFIGS.replace("config_name: pt", "config_name: pt\n  default: true"), *files)
    assert names(marked) == ["pt/c.jsonl"]


def test_clones_that_say_less_or_wrong_things(tmp_path: Path) -> None:
    plain = clone(tmp_path / "plain", "license: mit", "data/train-0.parquet", "data/test-0.parquet")
    assert names(parted(DataSettings(path=plain)).test_path) == ["data/test-0.parquet"]
    no_yaml = clone(tmp_path / "no_yaml", "a: [", "train.jsonl")
    assert names(no_yaml) == ["train.jsonl"]
    several = clone(
        tmp_path / "several",
        "configs:\n- config_name: default\n  data_files:\n  - {split: train_sft, path: a.jsonl}\n"
        "  - {split: train_gen, path: b.jsonl}\n  - {split: test_sft, path: c.jsonl}",
        "a.jsonl", "b.jsonl", "c.jsonl",
    )  # fmt: skip
    with pytest.raises(DataError, match=r"2 parts for train: train_sft, train_gen\n.*:train_sft"):
        parted(DataSettings(path=several))
    assert names(Path(f"{several}:train_gen")) == ["b.jsonl"]
    outside = "configs:\n- data_files: [../secret.jsonl, /etc/x.jsonl, 'https://example.org/x.jsonl', gone.jsonl]"
    with pytest.raises(DataError, match=r"none of the files that its README\.md names"):
        names(clone(tmp_path / "outside", outside, "a.jsonl"))
    put(tmp_path / "script", "script.py", "data.zip")
    with pytest.raises(DataError, match=r"script\.py is a script, and is not executed; data\.zip is an archive"):
        names(tmp_path / "script")


def test_class_names(tmp_path: Path) -> None:
    features = {
        **LABELS, "tags": {"feature": LABELS["label"], "_type": "Sequence"}, "all": [LABELS["label"]],
        "inner": {"kind": LABELS["label"], "n": {"dtype": "int64", "_type": "Value"}},
    }  # fmt: skip
    row = {"text": "1", "label": 1, "tags": [0, 1], "all": [1], "inner": {"kind": 0, "n": 1}}
    named = {"text": "1", "label": "yes", "tags": ["no", "yes"], "all": ["yes"], "inner": {"kind": "no", "n": 1}}
    for name in ("a.parquet", "a.arrow"):
        write_arrow(tmp_path / name, [row, {**row, "label": -1}, {**row, "label": 7}, {**row, "label": None}], features)
        notes = Notes()
        found = [each.values for each in read(DataSettings(path=tmp_path / name), notes) if isinstance(each, Record)]
        assert found == [{**named, "label": label} for label in ("yes", None, 7, None)]
        assert sum("class names" in line for line in notes.lines) == 4
    label = "  - name: label\n    dtype:\n      class_label:\n        names: {'0': 'no', '1': 'yes'}"
    folder = clone(tmp_path / "set", f"dataset_info:\n  features:\n{label}")
    (folder / "a.csv").write_text("text,label\na,0\nb,1\nc,maybe\n")
    found = [each.values["label"] for each in read(DataSettings(path=folder), Notes()) if isinstance(each, Record)]
    assert found == ["no", "yes", "maybe"]


def test_the_given_cases(shared: Path) -> None:
    cases = shared.parent / "cases"
    splits = read_splits(DataSettings(path=cases / "T_split"), 0)
    assert [int(mask.sum()) for mask in (splits.train, splits.held_out, splits.test)] == [40, 10, 20]
    for name in ("H_hidden", "H2_apple"):
        assert len(names(cases / name)) == 40
    assert check(DataSettings(path=cases / "J_disk")).labels == {"negative": 30, "positive": 30}


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
def test_a_first_pass_over_a_large_file_shows_progress(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_SECONDS_BETWEEN", 0.0)
    rows = [{"prompt": f"question {i} {i * 7919 % 104729}" * 9, "completion": "x"} for i in range(9000)]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=1000)
    else:
        write_rows(tmp_path / "rows.jsonl", rows)
    if suffix.endswith("gz"):
        import gzip

        path.write_bytes(gzip.compress((tmp_path / "rows.jsonl").read_bytes()))
    heard: list[Any] = []
    read_splits(DataSettings(path=path), 0, listener=heard.append)
    reports = [event for event in heard if isinstance(event, Progress) and "reading rows of" in event.stage]
    assert reports
    assert all(0 <= event.done < event.total == 100 for event in reports)
    assert reports[-1].done > 50
