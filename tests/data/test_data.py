"""From files to rows: what is read, what is rejected and why, what is learned."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, write_rows

from afina.core.config import build
from afina.core.errors import DataError, SettingsError, TooLong
from afina.data.batch import epoch_order, pack, passes
from afina.data.load import load_data
from afina.data.mapping import ColumnTemplate, Unusable, columns, read_examples
from afina.data.quality.duplicates import digest
from afina.data.settings import DataSettings
from afina.data.splits import sample, split
from afina.data.template import IGNORE_INDEX, prompt_ids, render
from afina.models.tokenizer import wrap


def examples(path: Path, **settings):
    return read_examples(DataSettings(path=path, **settings), needs_completion=True)[:2]


def test_three_formats_say_the_same(tmp_path: Path) -> None:
    rows = [{"prompt": 'a "quoted"\ntext', "completion": "x, y"}, {"prompt": "olá\u2028é", "completion": "z"}]
    write_rows(tmp_path / "d.jsonl", rows)
    (tmp_path / "d.json").write_text(json.dumps({"data": rows}))
    (tmp_path / "d.csv").write_text('\ufeffprompt,completion\r\n"a ""quoted""\ntext","x, y"\r\nolá\u2028é,z\r\n')
    found = [[(e.messages, e.completion) for e in examples(tmp_path / f"d.{s}")[0]] for s in ("jsonl", "json", "csv")]
    assert found[0] == found[1] == found[2]
    assert found[0][0] == (({"role": "user", "content": 'a "quoted"\ntext'},), "x, y")


def test_rejected_rows_have_place_and_reason(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text('q,a\n1,x\n2\n"3\n3",\n4,y\n')
    kept, rejected = examples(tmp_path / "d.csv", prompt="{q}", completion="{a}")
    assert [e.location for e in kept] == [f"{tmp_path}/d.csv:2", f"{tmp_path}/d.csv:6"]
    assert [(r.location.rsplit(":", 1)[1], r.reason) for r in rejected] == [
        ("3", "1 field, the header has 2"),
        ("4", "the completion is empty"),
    ]
    write_rows(tmp_path / "d.jsonl", [{"q": "1", "a": None}, {"a": "x"}, {"q": " ", "a": "x"}, {"q": "ok", "a": "x"}])
    kept, rejected = examples(tmp_path / "d.jsonl", prompt="{q}", completion="{a}")
    assert len(kept) == 1
    assert [r.reason for r in rejected] == [
        "column 'a' is missing or null",
        "column 'q' is missing or null",
        "the prompt is empty",
    ]


def test_template() -> None:
    values = {"a": "x", "b": [1, {"c": 2}], "name with space": ["s", "t"], "d": {"k": None}}
    assert ColumnTemplate("{{{a}}} {b} {name with space}", "-").fill(values) == '{x} [1, {"c": 2}] s t'
    assert ColumnTemplate("{b[1][c]}-{name with space[0]}", "-").fill(values) == "2-s"
    assert ColumnTemplate("Say {a}: {name with space}", "-").source(values) == "x s t"
    for text in ("{a", "a}", "{}", "no column"):
        with pytest.raises(DataError):
            ColumnTemplate(text, "--prompt")
    with pytest.raises(Unusable, match=r"no item \[9\]"):
        ColumnTemplate("{b[9]}", "-").fill(values)


def test_templates_of_columns_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ColumnTemplate("{a}" * 1000, "-").fill({"a": "x"}) == "x" * 1000
    with pytest.raises(DataError, match=r"^-- names 1,001 columns, with those that come again; 1,000 are read"):
        ColumnTemplate("{a}" * 1001, "--")
    with pytest.raises(SettingsError, match=r"^--prompt is .{,310}: string should have at most 100000 characters"):
        build(DataSettings, {"path": "a.jsonl", "prompt": "{a}" * 200_000})
    with pytest.raises(DataError) as error:
        ColumnTemplate("{" * 90_000, "--prompt")
    assert len(str(error.value)) < 600
    monkeypatch.setattr(columns, "RECORD_CHARACTERS", 20)
    assert ColumnTemplate("{a}{a}", "-").fill({"a": "x" * 10}) == "x" * 20
    for template in ("{a}{a}.", "{a}{b}", "{b[A. ]}"):
        with pytest.raises(Unusable, match=r"^- makes more than 20 characters of it"):
            ColumnTemplate(template, "-").fill({"a": "x" * 10, "b": ["y" * 6] * 3})


def test_messages_and_references(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows = [
        {"messages": chat},
        {"messages": chat[:1]},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"messages": 3},
    ]
    kept, rejected = examples(write_rows(tmp_path / "c.jsonl", rows), system="Be brief.")
    assert kept[0].messages == ({"role": "system", "content": "Be brief."}, chat[0])
    assert kept[0].references == ("Hello",)
    assert len(rejected) == 3
    path = write_rows(
        tmp_path / "r.jsonl", [{"q": "a", "refs": ["x", "y"]}, {"q": "b", "refs": "z"}, {"q": "c", "refs": []}]
    )
    settings = DataSettings(path=path, prompt="{q}", completion="{gone}", references="refs")
    kept, rejected, _ = read_examples(settings, needs_completion=False)
    assert [e.references for e in kept] == [("x", "y"), ("z",)]
    assert kept[0].completion is None
    assert len(rejected) == 1


def example_of(tmp_path: Path, *turns: str):
    chat = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    return examples(write_rows(tmp_path / "one.jsonl", [{"messages": chat}]))[0][0]


def learned(tok, row) -> list[str]:
    """The stretches of the row that carry labels, as text."""
    runs, run = [], []
    for token, label in zip(row.input_ids, row.labels, strict=True):
        assert label in (token, IGNORE_INDEX)
        if label == IGNORE_INDEX:
            runs += [run] if run else []
            run = []
        else:
            run.append(token)
    return [tok.inner.decode(r) for r in [*runs, run] if r]


def test_exactly_the_assistants_turns_are_learned(tmp_path: Path) -> None:
    tok = wrap(byte_tokenizer(), [])
    (row,) = render(tok, example_of(tmp_path, "Hi", "Hello", "And?", "Bye now"))
    assert learned(tok, row) == ["Hello<|im_end|>", "Bye now<|im_end|>"]
    whole = tok.inner.decode(row.input_ids)
    assert whole == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\nBye now<|im_end|>"
    )


def test_the_prompt_is_the_same_in_training_and_at_inference(tmp_path: Path) -> None:
    tok = wrap(byte_tokenizer(), [])
    example = example_of(tmp_path, "Hi", "Hello")
    (row,) = render(tok, example)
    prompt = prompt_ids(tok, example.messages)
    assert row.input_ids[: len(prompt)] == prompt
    assert row.labels[len(prompt) - 1] == IGNORE_INDEX
    assert row.labels[len(prompt)] == row.input_ids[len(prompt)]


def test_templates_that_trim_think_or_forget(tmp_path: Path) -> None:
    trims = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    tok = wrap(byte_tokenizer(chat_template=trims), [])
    assert learned(tok, *render(tok, example_of(tmp_path, "Hi", "  Hello "))) == ["Hello<|im_end|>"]
    thinks = trims.replace("%}[assistant]{%", "%}[assistant]<think></think>{%")
    tok = wrap(byte_tokenizer(chat_template=thinks), [])
    assert learned(tok, *render(tok, example_of(tmp_path, "Hi", "Hello"))) == ["Hello<|im_end|>"]
    rows = render(tok, example_of(tmp_path, "Hi", "Hello", "And?", "Bye"))
    assert [learned(tok, row) for row in rows] == [["Hello<|im_end|>"], ["Bye<|im_end|>"]]
    refuses = "{% if 'no' in messages[0]['content'] %}{{ raise_exception('no, no') }}{% endif %}" + trims
    tok = wrap(byte_tokenizer(chat_template=refuses), [])
    with pytest.raises(Unusable, match="the chat template refuses it: no, no"):
        prompt_ids(tok, [{"role": "user", "content": "no"}])


def test_one_bos(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    def with_bos(template: str):
        inner = byte_tokenizer(chat_template=template)
        inner.bos_token = "<|endoftext|>"
        inner.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
        return wrap(inner, [])

    plain = "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    for template in (plain, "{{ bos_token }}" + plain):
        (row,) = render(with_bos(template), example_of(tmp_path, "Hi", "Hello"))
        assert row.input_ids.count(0) == 1
        assert row.input_ids[0] == 0
        assert row.labels[0] == IGNORE_INDEX


def test_split_keeps_identical_prompts_together() -> None:
    prompts = np.array([digest(f"p{i // 3}") for i in range(90)], np.uint64)
    held = split(prompts, 0.1, 100, seed=4)
    assert held.sum() == 9
    assert not set(prompts[held]) & set(prompts[~held])
    assert (held == split(prompts, 0.1, 100, seed=4)).all()
    assert (held != split(prompts, 0.1, 100, seed=5)).any()
    assert split(prompts, 0.5, 6, seed=4).sum() == 6
    order = np.random.default_rng(0).permutation(90)  # the order of the rows does not matter
    assert (split(prompts[order], 0.1, 100, seed=4) == held[order]).all()
    with pytest.raises(DataError, match="only 1 distinct prompt"):
        split(prompts[:3], 0.1, 100, seed=0)


def test_sample_is_by_seed() -> None:
    assert sample(5, None, 0).tolist() == sample(5, 9, 0).tolist() == [True] * 5
    drawn = sample(1000, 50, 1)
    assert drawn.sum() == 50
    assert (drawn == sample(1000, 50, 1)).all()
    assert (drawn != sample(1000, 50, 2)).any()


def test_rows_on_disk_are_the_rows_that_were_rendered(tmp_path: Path, tiny) -> None:
    path = write_rows(tmp_path / "t.jsonl", [{"prompt": f"q {i}", "completion": f"a {i * i}"} for i in range(600)])
    settings = DataSettings(path=path, held_out_rows=10)
    data = load_data(settings, tiny, cache_dir=tmp_path / "cache")
    found, _, _ = read_examples(settings, needs_completion=True)
    one_by_one = [row for example in found for row in render(tiny.tokenizer, example)]
    stored = sorted([*data.train, *data.held_out], key=lambda row: int(row.location.rsplit(":", 1)[1]))
    assert stored == one_by_one
    assert data.train[-1] == data.train[len(data.train) - 1] == list(data.train)[-1]
    assert data.train.lengths.tolist() == [len(row.input_ids) for row in data.train]
    assert data.train.tokens == sum(data.train.lengths)
    assert data.train.labelled == sum(row.labelled for row in data.train)
    assert data.most_labelled == max(row.labelled for row in one_by_one)
    assert [e.location for e in data.examples] == [row.location for row in data.held_out]


def test_prepared_rows_are_found_again_while_nothing_changed(tmp_path: Path, tiny, monkeypatch) -> None:
    rows = [{"prompt": f"q {i}", "completion": f"a {i}"} for i in range(30)]
    path, cache = write_rows(tmp_path / "t.jsonl", rows), tmp_path / "cache"
    first = load_data(DataSettings(path=path), tiny, cache_dir=cache)
    (folder,) = (cache / "rows").iterdir()
    written = folder.stat().st_ino
    again = load_data(DataSettings(path=path), tiny, cache_dir=cache)
    assert [f.stat().st_ino for f in (cache / "rows").iterdir()] == [written]
    assert list(again.train) == list(first.train)
    assert again.examples == first.examples
    assert load_data(DataSettings(path=path), tiny, seed=1, cache_dir=cache).held_out != first.held_out
    write_rows(path, [*rows, {"prompt": "q", "completion": "new"}])
    assert len(load_data(DataSettings(path=path), tiny, cache_dir=cache).train) > len(first.train)
    assert len(list((cache / "rows").iterdir())) == 3
    monkeypatch.setattr("afina.data.store._MOST_BYTES", 1)  # the oldest give way
    load_data(DataSettings(path=path), tiny, seed=2, cache_dir=cache)
    assert len(list((cache / "rows").iterdir())) == 1
    assert list(first.train) == list(again.train)  # rows in use are not lost


def test_nothing_half_written_stays(tmp_path: Path, tiny) -> None:
    path = write_rows(tmp_path / "t.jsonl", [{"prompt": "x" * 600 * i, "completion": "x"} for i in range(1, 9)])
    with pytest.raises(DataError, match="longer than"):
        load_data(DataSettings(path=path), tiny, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache" / "rows").iterdir()) == []


def test_too_long_rows(tmp_path: Path, tiny) -> None:
    rows = [{"prompt": f"{i} {'x' * (200 if i == 5 else 3)} end", "completion": f"answer {i}"} for i in range(20)]
    path = write_rows(tmp_path / "long.jsonl", rows)

    def load(**settings):
        return load_data(DataSettings(path=path, max_length=120, **settings), tiny)

    with pytest.raises(TooLong, match=r"(?s)1 row is longer than 120 tokens, of 20 .*long\.jsonl:6.*--data.too_long"):
        load()
    dropped = load(too_long="drop")
    assert len(dropped.train) + len(dropped.held_out) == 19
    assert [r.location for r in dropped.rejected] == [f"{path}:6"]
    cut = load(too_long="cut")
    (row,) = [r for r in [*cut.train, *cut.held_out] if r.location == f"{path}:6"]
    assert 100 < len(row.input_ids) <= 120
    assert tiny.tokenizer.inner.decode([label for label in row.labels if label != IGNORE_INDEX]) == "answer 5<|im_end|>"
    assert cut.notices == ["1 prompt was cut to fit 120 tokens"]


def test_eval_file_limit_and_seed(tmp_path: Path, tiny) -> None:
    path = write_rows(tmp_path / "t.jsonl", [{"prompt": str(i), "completion": "x"} for i in range(50)])
    other = write_rows(tmp_path / "e.jsonl", [{"prompt": f"e{i}", "completion": "x"} for i in range(7)])
    data = load_data(DataSettings(path=path, eval_path=other, limit=20), tiny, seed=1)
    assert (len(data.train), len(data.held_out)) == (20, 7)
    other_seed = load_data(DataSettings(path=path, eval_path=other, limit=20), tiny, seed=2)
    assert list(data.train) != list(other_seed.train)


def test_packs_shift_labels_and_keep_rows_apart(tmp_path: Path) -> None:
    tok = wrap(byte_tokenizer(), [])
    short, long = (render(tok, example_of(tmp_path, *turns))[0] for turns in (("a", "b"), ("abc", "defg")))
    packed = pack([short, long], torch.device("cpu"))
    n = len(short.input_ids)
    assert packed.ids_T.tolist() == short.input_ids + long.input_ids
    assert packed.segments.bounds == (0, n, n + len(long.input_ids))
    assert packed.segments.positions_T.tolist() == [*range(n), *range(len(long.input_ids))]
    at = packed.labels_T[:n] != IGNORE_INDEX
    assert packed.labels_T[:n][at].tolist() == packed.ids_T[1 : n + 1][at].tolist() == tok.encode("b<|im_end|>")
    assert (len(packed.ids_T), packed.labelled) == (n + len(long.input_ids), 2 + 5)
    rows = [long, short, long, short, short]
    assert [len(group) for group, _ in passes(rows, n * 2)] == [2, 1, 1, 1]
    assert [len(group) for group, _ in passes(rows, 10_000, 2)] == [2, 2, 1]


def test_text_that_spells_a_control_token_or_is_no_unicode(tmp_path: Path, tiny) -> None:
    good = [{"prompt": str(i), "completion": "x"} for i in range(20)]
    path = tmp_path / "odd.jsonl"
    bad = [{"prompt": "a <|im_end|> b", "completion": "x"}, {"prompt": "c", "completion": "\ud800"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*good, *bad]))
    data = load_data(DataSettings(path=path, held_out=0.5), tiny)
    assert [(r.location, r.reason) for r in data.rejected] == [
        (f"{path}:22", "character 1 of a text is not valid Unicode"),
        (f"{path}:21", "the text holds the control token '<|im_end|>' of this base"),
    ]
    with pytest.raises(Unusable, match="not valid Unicode"):
        prompt_ids(tiny.tokenizer, [{"role": "user", "content": "\udcff"}])


def test_held_out_prompts_that_are_trained_on_are_counted(tmp_path: Path, tiny) -> None:
    path = write_rows(tmp_path / "t.jsonl", [{"prompt": str(i), "completion": "x"} for i in range(20)])
    (notice,) = load_data(DataSettings(path=path, eval_path=path), tiny).notices
    assert "20 prompts are also trained on" in notice


def test_epoch_orders_differ_and_repeat() -> None:
    assert epoch_order(30, 1, 0) == epoch_order(30, 1, 0)
    assert sorted(epoch_order(30, 1, 0)) == list(range(30))
    assert len({tuple(epoch_order(30, s, e)) for s in (1, 2) for e in (0, 1)}) == 4


def test_rows_of_one_prompt_come_in_blocks_of_a_step() -> None:
    """Where a prompt has more rows than a step, its blocks are shuffled among the others."""
    prompts = [0] * 40 + [n // 4 for n in range(4, 164)]
    order = epoch_order(200, 1, 0, prompts, 8)
    assert sorted(order) == list(range(200))
    blocks = [[prompts[row] for row in order[at : at + 8]] for at in range(0, 200, 8)]
    assert all(len(set(block)) <= 3 for block in blocks)
    of_first = [at for at, row in enumerate(order) if prompts[row] == 0]
    runs = [at for at in of_first if at - 1 not in of_first]
    assert len(runs) >= 3
    plain = epoch_order(200, 1, 0)
    assert [row for row in order if prompts[row] == 0] == [row for row in plain if prompts[row] == 0]


def test_a_test_split(tmp_path: Path, tiny) -> None:
    rows = [{"prompt": f"q {i // 2}", "completion": f"a {i}"} for i in range(200)]
    path = write_rows(tmp_path / "t.jsonl", rows)
    data = load_data(DataSettings(path=path, test=0.2, test_rows=30), tiny)
    parts = [{row.location for row in part} for part in (data.train, data.held_out, data.test)]
    assert [len(part) for part in parts] == [154, 16, 30]
    assert len(set.union(*parts)) == 200
    prompts = [{(int(where.rsplit(":", 1)[1]) - 1) // 2 for where in part} for part in parts]
    assert not (prompts[0] | prompts[1]) & prompts[2]  # never one prompt on both sides
    assert [e.location for e in data.examples] == [row.location for row in data.test]


def test_a_test_file_may_hold_references_only(tmp_path: Path, tiny) -> None:
    path = write_rows(tmp_path / "t.jsonl", [{"q": f"q {i}", "a": f"a {i}"} for i in range(40)])
    test = write_rows(tmp_path / "test.jsonl", [{"q": f"q {i}", "refs": ["one", "two"]} for i in range(38, 48)])
    settings = DataSettings(path=path, prompt="{q}", completion="{a}", references="refs", test_path=test, test_rows=8)
    data = load_data(settings, tiny)
    assert len(data.test) == 8
    assert len(data.train) + len(data.held_out) == 40
    assert data.examples[0].references == ("one", "two")
    assert data.examples[0].completion == "one"
    assert any("test.jsonl: " in line and "also trained on" in line for line in data.notices)
