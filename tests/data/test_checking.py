"""What a check finds in files made for it and in real ones; cleaned and split data; a row as the model sees it."""

import json
import random
from pathlib import Path

import pytest
from conftest import write_rows

from afina.core.config import changed
from afina.core.errors import DataError, OutputError
from afina.data.quality.checks import check
from afina.data.quality.duplicates import Seen, Sketches, signature
from afina.data.quality.preparation import PrepareSettings
from afina.data.quality.signals import damaged, language, masked, personal, repaired
from afina.data.settings import DataSettings
from afina.jobs.data.check import CheckDataSettings
from afina.jobs.data.check import check as check_data
from afina.jobs.data.prepare import PrepareDataResult, PrepareDataSettings
from afina.jobs.data.prepare import prepare as prepare_data
from afina.jobs.data.show import ShowRowSettings, show
from afina.ui.cli import main

WORDS = [
    "river",
    "stone",
    "cloud",
    "paper",
    "lamp",
    "window",
    "garden",
    "music",
    "train",
    "coffee",
    "winter",
    "letter",
    "island",
    "mirror",
    "bridge",
]


def sentence(seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=14))


def prepared(path: Path, how: PrepareSettings, out: Path) -> PrepareDataResult:
    """Without a base's tokenizer."""
    return prepare_data(
        PrepareDataSettings(data=DataSettings(path=path), prepare=how, out=out, cache_dir=path.parent / "empty")
    )


def rows_in(folder: Path, side: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{side}.jsonl").read_text().splitlines()]


def following(data: DataSettings) -> str:
    return check_data(CheckDataSettings(data=data, cache_dir=data.path.parent / "empty")).following


def found(path: Path, **settings) -> dict[str, int]:
    result = check(DataSettings(path=path, **settings))
    assert result.rows_in == result.rows_kept + result.rows_reported
    return {finding.code: finding.count for finding in result.findings}


def test_what_a_careful_person_would_find(tmp_path: Path) -> None:
    rows = [{"prompt": sentence(i), "completion": f"an answer {i}"} for i in range(100)]
    assert found(write_rows(tmp_path / "clean.jsonl", rows)) == {}
    bad = [
        *rows, rows[3], rows[3],
        {"prompt": rows[5]["prompt"], "completion": "another answer"},
        {"prompt": rows[7]["prompt"] + " end", "completion": "near"},
        {"prompt": "call ana@example.com about it", "completion": "the CPF is 529.982.247-25"},
        {"prompt": "o pedido nÃ£o chegou atÃ© hoje", "completion": "ok, sorry"},
        {"prompt": "no answer here", "completion": ""},
    ]  # fmt: skip
    path = write_rows(tmp_path / "bad.jsonl", bad)
    assert found(path) == {
        "duplicates": 2,
        "groups": 2,
        "near copies": 1,
        "damaged": 1,
        "personal: e-mail": 1,
        "personal: CPF": 1,
    }
    result = check(DataSettings(path=path))
    assert result.ready
    assert "the completion is empty" in result.reasons[0]
    assert "'o pedido não chegou até hoje'" in next(f.text for f in result.findings if f.code == "damaged")
    held = write_rows(
        tmp_path / "held.jsonl",
        [rows[1], {"prompt": rows[2]["prompt"] + " so", "completion": "x"}, {"prompt": "new", "completion": "y"}],
    )
    assert {k: n for k, n in found(path, eval_path=held).items() if "leak" in k} == {"leaks": 1, "near leaks": 1}


def test_classes_that_conflict_or_are_unbalanced(tmp_path: Path) -> None:
    rows = [{"text": sentence(i), "label": "good" if i % 10 else "bad"} for i in range(200)]
    rows.append({"text": rows[1]["text"], "label": "bad"})
    assert found(write_rows(tmp_path / "c.jsonl", rows)).keys() == {"conflicts", "balance"}


def test_what_stands_in_the_way_of_training(tmp_path: Path, tiny_folder: Path) -> None:
    cases = {
        "same": ([{"prompt": "x", "completion": str(i)} for i in range(60)], "one prompt"),
        "none": ([{"prompt": "", "completion": "y"}] * 60, "nothing"),
        "columns": ([{"a": "x", "b": "y"}] * 60, "mapping"),
        "long": ([{"prompt": sentence(i) * (40 if i == 3 else 1), "completion": "y"} for i in range(60)], "too long"),
    }
    for name, (rows, code) in cases.items():
        path = write_rows(tmp_path / f"{name}.jsonl", rows)
        result = check_data(CheckDataSettings(data=DataSettings(path=path), base=str(tiny_folder)))
        assert code in {f.code for f in result.findings if f.severity == "error"}, name
        assert not result.ready
        assert result.rows_in == 60
        assert main(["data", "check", str(path), "--base", str(tiny_folder)]) == 1
    (tmp_path / "empty.jsonl").write_text("")
    assert not check(DataSettings(path=tmp_path / "empty.jsonl")).ready
    assert main(["data", "check", str(tmp_path / "nowhere.csv")]) == 2


@pytest.mark.parametrize(
    "text",
    [
        "Come on, do it", "As an idea", "No, on Sunday", "Do so", "me and an aunt", "Plus one", "printer broken", "No",
        "in 14 days", "Es 3", "CD player",
    ],
)  # fmt: skip
def test_a_few_words_of_english_are_not_taken_for_another_language(text: str) -> None:
    assert language(text) in (None, "en")


def test_rows_that_are_too_long_are_treated_as_in_training(tmp_path: Path, tiny_folder: Path) -> None:
    """Named with their lengths; left out where that is asked for; cut where something is left of them."""
    rows = [
        {"prompt": sentence(i) * (40 if i == 3 else 1), "completion": "yn"[i % 2] * (600 if i == 7 else 1)}
        for i in range(60)
    ]
    path = write_rows(tmp_path / "long.jsonl", rows)
    seen = {}
    for chosen in ("error", "drop", "cut"):
        data = DataSettings(path=path, too_long=chosen)
        result = check_data(CheckDataSettings(data=data, base=str(tiny_folder)))
        (long,) = [each for each in result.findings if each.code == "too long"]
        assert (long.count, long.rows) == (2, [f"{path}:4", f"{path}:8"])
        assert long.facts["longest"] == max(long.facts["tokens"])
        assert str(long.facts["longest"]) in long.text
        seen[chosen] = (result.ready, long.severity, result.rows_kept, max(result.lengths.values()) > 512)
        assert ("--data.too_long" in result.following) == (chosen != "error")
    assert seen == {
        "error": (False, "error", 60, True), "drop": (True, "note", 58, False), "cut": (True, "note", 59, False)
    }  # fmt: skip


def test_near_copies_by_the_share_of_common_runs() -> None:
    def runs(text: str) -> set[str]:
        return {text[i : i + 5] for i in range(len(text) - 4)}

    for seed in range(20):
        text = sentence(seed)
        words = text.split()
        words[seed % 14] = "changed"
        other = " ".join(words)
        exact = len(runs(text) & runs(other)) / len(runs(text) | runs(other))
        assert abs(float((signature(text) == signature(other)).mean()) - exact) < 0.3
    sketches, seen = Sketches(), Seen()
    for text in (sentence(1), sentence(2), sentence(1).upper() + " x", sentence(3), sentence(2)):
        sketches.add(text)
        seen.add(text)
    assert list(sketches.pairs()) == [(0, 2), (1, 4)]
    assert list(seen.groups()) == [[1, 4]]


def test_signals() -> None:
    assert [language(t) for t in ("this is not what you want", "isso não é o que você quer", "123")] == [
        "en",
        "pt",
        None,
    ]
    assert repaired("coraÃ§Ã£o â€œsimâ€\u009d") == "coração “sim”"
    assert not damaged("Ação, São, Ângela, à vista, “ok” – ½ €5 Â")
    text = (
        "a.b@c.org 111.111.111-11 529.982.247-25 4111 1111 1111 1111 4111 1111 1111 1112 (11) 98765-4321 "
        "+351 912 345 678"
    )
    assert sorted(kind for kind, _, _ in personal(text)) == ["CPF", "card", "e-mail", "telephone", "telephone"]
    assert masked("me: a.b@c.org.") == "me: [E-MAIL]."


def test_prepared_data_are_clean_split_and_the_same_in_any_order(tmp_path: Path) -> None:
    rows = [{"prompt": sentence(i), "completion": f"an answer {i % 3}"} for i in range(120)]
    rows += [{"prompt": row["prompt"] + " more", "completion": "near"} for row in rows[:20]]
    rows += [rows[0], {"prompt": "to ana@example.com", "completion": "nÃ£o"}]
    how = PrepareSettings(mask=True, repair=True, test=0.2, seed=3)
    parts = []
    for i in range(2):
        path = write_rows(tmp_path / f"{i}.jsonl", random.Random(i).sample(rows, len(rows)))
        result = prepared(path, how, tmp_path / f"out{i}")
        test = [json.loads(line) for line in (tmp_path / f"out{i}" / "test.jsonl").read_text().splitlines()]
        train = [json.loads(line) for line in (tmp_path / f"out{i}" / "train.jsonl").read_text().splitlines()]
        parts.append({row["prompt"] for row in test})
        assert len(train) + len(test) == 141
        assert 20 <= len(test) <= 29
        assert result.done == {"repaired": 1, "masked": 1, "copies taken out": 1}
        assert {"prompt": "to [E-MAIL]", "completion": "não"} in [*train, *test]
        held = {row["prompt"].removesuffix(" more") for row in test}
        assert not held & {row["prompt"].removesuffix(" more") for row in train}  # near copies stay together
        assert "20 %" not in (tmp_path / f"out{i}" / "README.md").read_text()
    assert parts[0] == parts[1]
    near = prepared(path, changed(how, {"split_near": True}), tmp_path / "near")
    assert near.train + near.test == 141
    sides = [
        {row["prompt"].removesuffix(" more") for row in rows_in(tmp_path / "near", side)} for side in ("train", "test")
    ]
    assert sides[0] & sides[1]
    prepared(path, changed(how, {"seed": 4}), tmp_path / "other")
    assert {row["prompt"] for row in rows_in(tmp_path / "other", "test")} != parts[0]
    with pytest.raises(OutputError, match="is not empty"):
        prepared(path, how, tmp_path / "other")


def test_splits_by_answer_and_by_time(tmp_path: Path) -> None:
    rows = [
        {"text": sentence(i), "label": "rare" if i % 10 == 0 else "usual", "day": f"2024-01-{i % 28 + 1:02d}"}
        for i in range(200)
    ]
    path = write_rows(tmp_path / "c.jsonl", rows)
    prepared(path, PrepareSettings(split="stratified", test=0.2), tmp_path / "s")
    assert sum(row["completion"] == "rare" for row in rows_in(tmp_path / "s", "test")) == 4
    prepared(path, PrepareSettings(split="time", by="day", test=0.1), tmp_path / "t")
    days = {row["text"]: row["day"] for row in rows}
    train, test = ([days[row["prompt"]] for row in rows_in(tmp_path / "t", side)] for side in ("train", "test"))
    assert min(test) > max(train)
    for by, words in ((None, "--by COLUMN"), ("hour", "has no 'hour'")):
        with pytest.raises(DataError, match=words):
            prepared(path, PrepareSettings(split="time", by=by), tmp_path / "x")


@pytest.mark.parametrize("split", ["random", "stratified"])
def test_rows_stay_with_those_that_ask_the_same_however_often_they_are_linked(split: str, tmp_path: Path) -> None:
    """Groups of equal prompts, and chains of near ones (the first and the last are not alike)."""
    groups: list[list[str]] = [[sentence(i)] * 4 for i in range(10)]
    for i in range(10, 20):
        words = sentence(i).split() * 3
        groups.append([" ".join(words[:at] + ["changed"] * 2 + words[at + 2 :]) for at in range(0, 30, 3)])
    groups += [[sentence(i)] for i in range(20, 60)]
    rows = [{"prompt": text, "completion": f"{g % 2}"} for g, group in enumerate(groups) for text in group]
    which = {
        row["prompt"]: g for row, g in zip(rows, (g for g, group in enumerate(groups) for _ in group), strict=True)
    }
    random.Random(1).shuffle(rows)
    how = PrepareSettings(test=0.3, split=split, keep_copies=True)
    found = prepared(write_rows(tmp_path / "r.jsonl", rows), how, tmp_path / "out")
    train, test = (rows_in(tmp_path / "out", side) for side in ("train", "test"))
    assert not {which[row["prompt"]] for row in train} & {which[row["prompt"]] for row in test}
    assert (len(train), len(test)) == (found.train, found.test)
    assert sorted(map(str, train + test)) == sorted(map(str, rows))
    assert [row for row in rows if row in train] == train  # in the order of the file
    assert 0.2 * len(rows) <= len(test) <= 0.3 * len(rows) + 1
    if split == "stratified":
        of_one = sum(row["completion"] == "1" for row in rows) / len(rows)
        assert abs(sum(row["completion"] == "1" for row in test) / len(test) - of_one) < 0.1


def test_numbers_and_words_in_time(tmp_path: Path) -> None:
    moments = ["10", "9", "1e2", "nan", "2024", "b", "a", "-3", "10.0"]
    rows = [{"prompt": sentence(i), "completion": "x", "when": when} for i, when in enumerate(moments)]
    path = write_rows(tmp_path / "r.jsonl", rows)
    for share, last in ((0.2, {"b", "nan"}), (0.4, {"a", "b", "nan", "2024"}), (0.6, {"a", "b", "nan", "2024", "1e2"})):
        out = tmp_path / f"{share}"
        prepared(path, PrepareSettings(split="time", by="when", test=share), out)
        when = {row["prompt"]: row["when"] for row in rows}
        assert {when[row["prompt"]] for row in rows_in(out, "test")} == last
    prepared(path, PrepareSettings(split="time", by="when", test=0.7), tmp_path / "tie")  # 10 and 10.0 are one moment
    assert len(rows_in(tmp_path / "tie", "test")) == 7


def test_rows_that_spell_a_control_token_are_left_out_as_in_training(tmp_path: Path, tiny_folder: Path, capsys) -> None:
    """By the base and its template: what is a control token to one is text to another."""
    rows = [{"prompt": sentence(i), "completion": f"answer {i}"} for i in range(30)]
    rows += [
        {"prompt": "say <|im_end|> twice", "completion": "no"},
        {"prompt": "what ends a turn?", "completion": "<|im_end|>"},
        {"prompt": "and in the middle", "completion": "a<|endoftext|>b"},
        {"prompt": "almost", "completion": "<|im_end |>"},
    ]
    path = write_rows(tmp_path / "r.jsonl", rows)
    out = tmp_path / "out"
    assert main(["data", "prepare", str(path), "--out", str(out), "--base", str(tiny_folder)]) == 0
    assert "3" in capsys.readouterr().out
    done = json.loads((out / "prepared.json").read_text())["done"]
    assert sum(n for what, n in done.items() if "control token" in what) == 3
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [row["where"].rpartition(":")[2] for row in rejected] == ["31", "32", "33"]
    written = rows_in(out, "train") + rows_in(out, "test")
    assert sorted(row["prompt"] for row in written) == sorted(row["prompt"] for row in [*rows[:30], rows[33]])
    assert main(["data", "check", str(path), "--base", str(tiny_folder), "--json"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["rows_reported"] == 3  # and so does training
    empty = PrepareDataSettings(data=DataSettings(path=path), out=tmp_path / "all", cache_dir=tmp_path / "empty")
    news: list = []
    result = prepare_data(empty, news.append)
    assert result.train + result.test == 34
    assert "control tokens were not looked at" in news[0].text


def test_a_template_counts_for_check_show_and_prepare(tmp_path: Path, tiny_folder: Path, capsys) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
                        "{% if add_generation_prompt %}[assistant]{% endif %}")  # fmt: skip
    path = write_rows(tmp_path / "r.jsonl", [{"prompt": sentence(i), "completion": "xyz"[i % 3]} for i in range(60)])
    base = ["--base", str(tiny_folder)]
    seen = {}
    for own in ([], ["--template", str(template)]):
        asked = ShowRowSettings(data=DataSettings(path=path), base=str(tiny_folder), template=own[-1] if own else None)
        tokens = show(asked).tokens
        assert main(["data", "check", str(path), *base, *own, "--json"]) == 0
        seen[bool(own)] = "".join(text for text, _ in tokens), json.loads(capsys.readouterr().out)["lengths"]["p0"]
    assert seen[True][0] == f"[user]{sentence(0)}<|im_end|>[assistant]x<|im_end|>"
    # <|im_start|> twice, user, assistant and three line ends there; two words in brackets here.
    assert seen[False][1] - seen[True][1] == (2 + 4 + 9 + 3) - (6 + 11)
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% for m in %}")
    for action in (["check"], ["show"], ["prepare", "--out", str(tmp_path / "o")]):
        assert main(["data", *action, str(path), *base, "--template", str(broken)]) == 2
        assert "--template" in capsys.readouterr().err
        assert main(["data", *action, str(path), *base, "--template", str(tmp_path / "absent")]) == 2
        assert "cannot read the chat template" in capsys.readouterr().err


def test_the_next_commands_keep_base_and_template(tmp_path: Path, tiny_folder: Path) -> None:
    template = tmp_path / "my template.jinja"
    template.write_text((tiny_folder / "chat_template.jinja").read_text())
    rows = [{"prompt": sentence(i), "completion": f"r{i}"} for i in range(60)]
    path = write_rows(tmp_path / "r.jsonl", [*rows, rows[0]])
    asked = CheckDataSettings(data=DataSettings(path=path), base=str(tiny_folder), template=template)
    for line in check_data(asked).following.splitlines():
        assert f"--base {tiny_folder} --template '{template}'" in line


def test_parquet_of_rows_that_have_not_the_same_columns(tmp_path: Path) -> None:
    import pyarrow.parquet

    rows = [{"prompt": sentence(i), "completion": "x"} for i in range(30)]
    talk = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    write_rows(tmp_path / "talk.jsonl", [{"messages": talk["messages"] * 2} for _ in range(9)])
    write_rows(tmp_path / "text.jsonl", [{"text": sentence(i)} for i in range(9)])
    path = write_rows(tmp_path / "r.jsonl", rows)
    how = PrepareSettings(format="parquet", replay=f"{tmp_path / 'talk.jsonl'}=0.1,{tmp_path / 'text.jsonl'}=0.1")
    result = prepared(path, how, tmp_path / "out")
    table = pyarrow.parquet.read_table(tmp_path / "out" / "train.parquet")
    assert table.num_rows == result.train == 27 + 3 + 3
    found = table.to_pylist()
    assert sum(row["text"] is not None for row in found) == 3
    assert all((row["text"] is None) != (row["messages"] is None) for row in found)
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [
        "README.md", "prepared.json", "test.parquet", "train.parquet",
    ]  # fmt: skip
    assert check(DataSettings(path=tmp_path / "out" / "train.parquet")).rows_kept == 33


def test_a_row_as_the_model_sees_it(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_rows(
        tmp_path / "r.jsonl", [{"prompt": "olá", "completion": "é isso"}, {"prompt": "", "completion": "x"}]
    )
    row = show(ShowRowSettings(data=DataSettings(path=path), base=str(tiny_folder)))
    assert (
        "".join(text for text, _ in row.tokens)
        == "<|im_start|>user\nolá<|im_end|>\n<|im_start|>assistant\né isso<|im_end|>"
    )
    assert "".join(text for text, learned in row.tokens if learned) == "é isso<|im_end|>"
    assert main(["data", "show", str(path), "--base", str(tiny_folder), "--html", str(tmp_path / "r.html")]) == 0
    assert "tokens, " in capsys.readouterr().out
    assert 'class="learned">é</span>' in (tmp_path / "r.html").read_text()
    assert main(["data", "show", str(path), "--row", "2", "--base", str(tiny_folder)]) == 2
    assert "the prompt is empty" in capsys.readouterr().err
    assert main(["data", "show", str(path), "--row", "9", "--base", str(tiny_folder)]) == 2


def test_a_row_is_shown_at_the_place_that_a_finding_names(tmp_path: Path, tiny_folder: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text,label\n"one\ntwo",yes\nthree,no\n,maybe\n')
    data = DataSettings(path=path, prompt="{text}", completion="{label}")
    row = show(ShowRowSettings(data=data, base=str(tiny_folder), at=f"{path}:4"))
    assert (row.where, row.learned) == (f"{path}:4", ("no<|im_end|>",))
    with pytest.raises(DataError, match=r"row 3 \(.*rows\.csv:5\) cannot be used"):
        show(ShowRowSettings(data=data, base=str(tiny_folder), at=f"{path}:5"))
    with pytest.raises(DataError, match=r"has no row at '.*rows\.csv:3'"):
        show(ShowRowSettings(data=data, base=str(tiny_folder), at=f"{path}:3"))


def test_a_row_as_json_names_what_is_learned_and_what_is_not(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [("user", "Olá, você?"), ("assistant", "Não 😀"), ("user", "e «isso»"), ("assistant", "é")]
    messages = [{"role": role, "content": text} for role, text in turns]
    path = write_rows(tmp_path / "r.jsonl", [{"messages": messages}])
    text = write_rows(tmp_path / "t.jsonl", [{"text": "só texto"}])

    def shown(*more: str) -> dict:
        assert main(["data", "show", *more, "--base", str(tiny_folder), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    found = shown(str(path))
    assert found["where"] == f"{path}:1"
    assert found["learned"] == ["Não 😀<|im_end|>", "é<|im_end|>"]
    assert found["not_learned"] == [
        "<|im_start|>user\nOlá, você?<|im_end|>\n<|im_start|>assistant\n",
        "\n<|im_start|>user\ne «isso»<|im_end|>\n<|im_start|>assistant\n",
    ]
    assert "".join(token for token, _ in found["tokens"]) == "".join(
        before + after for before, after in zip(found["not_learned"], found["learned"], strict=True)
    )
    last = shown(str(path), "--learn", "last")
    assert last["learned"] == ["é<|im_end|>"]
    assert last["not_learned"] == ["".join(token for token, _ in last["tokens"]).removesuffix("é<|im_end|>")]
    plain = shown(str(text))
    assert (plain["learned"], plain["not_learned"]) == (
        ["ó texto<|im_end|>"],
        ["s"],
    )  # nothing comes before the first token


def test_the_texts_of_tokens_together_are_the_rows_text() -> None:
    """A SentencePiece decoder drops the space that a text begins with; it must not drop one before each token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from afina.data.template import Row
    from afina.measure.pages.data_pages import rendered
    from afina.models.tokenizer import wrap

    words = ["<s>", "</s>", "▁a", "▁red", "▁kettle", "s", "▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        chat_template="{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
    )
    house = [words.index(f"<0x{byte:02X}>") for byte in "家".encode()]
    ids = [2, 3, 4, 5, *house, 4, 1]
    row = Row(ids, [-100] * 3 + ids[3:], "here")
    found = rendered(wrap(inner, []), [row])
    assert [text for text, _ in found.tokens] == ["a", " red", " kettle", "s", "家", " kettle", "</s>"]
    assert (found.texts(learned=False), found.texts(learned=True)) == (["a red kettle"], ["s家 kettle</s>"])


def test_the_command_prints_json_and_a_page(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_rows(tmp_path / "r.jsonl", [{"text": sentence(i), "label": "ab"[i % 2]} for i in range(60)])
    arguments = ["data", "check", str(path), "--base", str(tiny_folder), "--html", str(tmp_path / "p.html")]
    assert main([*arguments, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["rows_in"] == answer["rows_kept"] == 60
    assert answer["rows_reported"] == 0
    assert answer["verdict"].startswith("ready")
    assert answer["lengths"]["p50"] > 50
    page = (tmp_path / "p.html").read_text()
    assert page.count("<svg") == 3
    assert main(["data", "check", str(path), "--mask"]) == 2
    assert main(["data", "prepare", str(path)]) == 2
    assert main(["data", "prepare", str(path), "--out", str(tmp_path / "out"), "--test", "2"]) == 2


@pytest.mark.parametrize(("name", "codes"), [
    ("toolcall_chat/train.json", {"duplicates": 35}),
    ("mt_geneval_en_pt/train.csv", {"near copies": 952, "groups": 4}),
    ("scitldr/train.jsonl", {"leaks": 2}),
])  # fmt: skip
def test_real_files(shared: Path, name: str, codes: dict[str, int]) -> None:
    path = shared / name
    held = path.with_name("test.jsonl")
    assert codes.items() <= found(path, **({"eval_path": held} if held.exists() else {})).items()


def test_the_next_command_repeats_what_was_given(tmp_path: Path) -> None:
    rows = [{"pergunta": sentence(i), "resposta": f"r{i}"} for i in range(60)]
    path = write_rows(tmp_path / "pt.jsonl", rows)
    settings = DataSettings(path=path, map="prompt=pergunta,completion=resposta", learn="last", kind="chat")
    flags = "--map prompt=pergunta,completion=resposta --data.learn last --kind chat"
    assert following(settings) == f"afina train {path} {flags}"
    write_rows(path, [*rows, rows[0]])
    first, second = following(settings).splitlines()
    assert first == f"afina data prepare {path} --map prompt=pergunta,completion=resposta --out clean"
    assert second.endswith("--eval-data clean/test.jsonl --data.learn last --kind chat")


def test_what_was_not_looked_at_is_said(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": sentence(i), "completion": "x"} for i in range(60)])
    seen = check_data(CheckDataSettings(data=DataSettings(path=path), cache_dir=tmp_path / "empty"))
    assert "no tokenizer" in {finding.code for finding in seen.findings}
    assert "were not looked at" in seen.verdict


def test_one_row_or_mostly_unusable_rows_are_not_ready(tmp_path: Path) -> None:
    rows = [{"prompt": sentence(i), "completion": f"x{i}" if i < 20 else ""} for i in range(60)]
    assert not check(DataSettings(path=write_rows(tmp_path / "a.jsonl", rows[:1]))).ready
    assert not check(DataSettings(path=write_rows(tmp_path / "b.jsonl", rows))).ready
    assert check(DataSettings(path=write_rows(tmp_path / "c.jsonl", rows[:30]))).ready


def test_a_folder_in_parts_is_trained_on_as_it_is(tmp_path: Path) -> None:
    """`prepare` divides one part, and would lose the others."""
    rows = [{"prompt": sentence(i), "completion": f"r{i}"} for i in range(40)]
    write_rows(tmp_path / "train.jsonl", [*rows, rows[0]])
    assert following(DataSettings(path=tmp_path)).startswith("afina data prepare ")
    write_rows(tmp_path / "test.jsonl", [{"prompt": sentence(i), "completion": f"r{i}"} for i in range(40, 60)])
    assert following(DataSettings(path=tmp_path)) == f"afina train {tmp_path}"
