"""Training on plain text as it stands, and text replayed among questions."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import evaluate, generate, write_rows

from afina import RunSettings, train
from afina.core.errors import DataError, SettingsError
from afina.data.load import load_data, render_splits
from afina.data.mapping import read_examples
from afina.data.quality.preparation import row_of
from afina.data.settings import DataSettings
from afina.data.splits import read_splits
from afina.data.template import divide, render
from afina.measure.intervals import paired_difference
from afina.measure.metrics import METRICS
from afina.measure.metrics.likelihood import bits_per_byte
from afina.measure.trivial_baselines import byte_frequencies
from afina.models.model import IGNORE_INDEX
from afina.ui.cli import main


@pytest.fixture
def story(tmp_path: Path) -> Path:
    path = tmp_path / "story.txt"
    path.write_text(
        "\n\n".join(f"Chapter {i}. The tide came in {i % 7} times that day; então voltou." for i in range(120))
    )
    return path


def test_all_of_a_text_is_learned_and_its_end(story: Path, tiny) -> None:
    (first, *_), rejected, _ = read_examples(DataSettings(path=story), needs_completion=True)
    assert len(rejected) == 0
    (row,) = render(tiny.tokenizer, first)
    assert row.input_ids == [*tiny.tokenizer.encode(first.completion), tiny.tokenizer.inner.eos_token_id]
    assert row.labels == [IGNORE_INDEX, *row.input_ids[1:]]  # nothing tells the first token


def test_long_texts_are_divided_and_nothing_is_lost(tmp_path: Path, tiny) -> None:
    path = tmp_path / "long.txt"
    whole = [" ".join(f"word{i * n}" for i in range(90)) for n in range(4)] + ["ñ" * 700]
    path.write_text("\n\n".join(whole), encoding="utf-8")
    data = load_data(DataSettings(path=path, max_length=100), tiny)
    assert data.notices == ["5 texts were divided into rows of at most 100 tokens"]
    assert max(data.train.lengths) <= 100
    found, _, _ = read_examples(DataSettings(path=path), needs_completion=True)
    for example in found:
        pieces = list(divide(tiny.tokenizer, example, 100))
        assert "".join(piece.completion or "" for piece in pieces) == example.completion
        assert [piece.unfinished for piece in pieces] == [True] * (len(pieces) - 1) + [False]


def test_training_evaluating_and_going_on(story: Path, tiny_folder: Path, tmp_path: Path) -> None:
    settings = RunSettings(
        base=str(tiny_folder),
        out=tmp_path / "run",
        data={"path": story},
        train={"epochs": 3, "learning_rate": 1e-2},
        precision="fp32",
    )
    result = train(settings)
    found = result.evaluation
    assert (found.kind, found.main_metric) == ("text", "bits_per_byte")
    assert found.adapted["bits_per_byte"] < found.base["bits_per_byte"]
    assert found.difference["bits_per_byte"]["verdict"] == "better"
    assert found.base["perplexity"] == pytest.approx(math.exp(found.base["loss"]))
    assert "bits per byte" in result.report.read_text()
    more = evaluate(result.folder, story)
    assert more.adapted["bits_per_byte"] < more.base["bits_per_byte"]
    (answer,) = generate(result.folder, ["Chapter 121. The"])
    assert answer["answer"]


def test_bits_per_byte_by_hand(tiny, story: Path) -> None:
    from transformers import AutoModelForCausalLM

    found, _, _ = read_examples(DataSettings(path=story), needs_completion=True)
    example = found[0]
    (row,) = render(tiny.tokenizer, example)
    twin = AutoModelForCausalLM.from_pretrained(tiny.facts.path).eval()
    with torch.no_grad():
        ids = torch.tensor([row.input_ids])
        loss = twin(ids, labels=ids).loss.item() * (len(row.input_ids) - 1)
    from afina.training.loss import row_losses

    nats = [loss_ for loss_, _ in row_losses(tiny, [row])]
    assert nats[0] == pytest.approx(loss, rel=1e-4)
    text = example.completion or ""
    assert bits_per_byte(nats, [text]).score() == pytest.approx(loss / math.log(2) / len(text.encode()), rel=1e-4)
    assert byte_frequencies(["aabb", "ab"]).score() == pytest.approx(1.0)
    lower = METRICS["bits_per_byte"].lower_is_better
    worse = paired_difference(bits_per_byte([1.0] * 20, ["abc"] * 20), bits_per_byte([2.0] * 20, ["abc"] * 20), lower)
    assert (worse.value > 0, worse.verdict) == (True, "worse")


def test_replayed_text_is_trained_on_and_never_held_out(tmp_path: Path, tiny) -> None:
    rows = [{"prompt": f"q {i}", "completion": f"a {i % 3}"} for i in range(40)]
    texts = [{"text": f"general text {i}"} for i in range(40)]
    path = write_rows(tmp_path / "mixed.jsonl", [row for pair in zip(rows, texts, strict=True) for row in pair])
    parts = read_splits(DataSettings(path=path, held_out=0.4), 0)
    assert parts.kind == "classification"
    assert not parts.held_out[1::2].any()
    assert parts.held_out.sum() == 16
    data = load_data(DataSettings(path=path), tiny)
    assert len(data.train) + len(data.held_out) == 80
    found, _, _ = read_examples(DataSettings(path=path), needs_completion=True)
    assert [json.dumps(row_of(example, True)) for example in found] == [
        json.dumps(row) for row in map(json.loads, path.read_text().splitlines())
    ]


def test_kind_must_fit_the_file(story: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is plain text"):
        read_splits(DataSettings(path=story, kind="chat"), 0)
    path = write_rows(tmp_path / "q.jsonl", [{"prompt": f"{i}", "completion": f"{i}"} for i in range(20)])
    with pytest.raises(DataError, match="holds prompts and answers"):
        read_splits(DataSettings(path=path, kind="text"), 0)
    assert read_splits(DataSettings(path=path, kind="summarisation"), 0).resolved().kind == "summarisation"


def test_only_the_last_turn_is_learned_if_asked(tmp_path: Path, tiny) -> None:
    turns = [("user", "a"), ("assistant", "bb"), ("user", "c"), ("assistant", "dd")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    path = write_rows(tmp_path / "chat.jsonl", [row])
    learned = {}
    for what in ("all", "last"):
        ((example,), _, _) = read_examples(DataSettings(path=path, learn=what), needs_completion=True)
        ids = np.array(render(tiny.tokenizer, example)[0].labels)
        learned[what] = tiny.tokenizer.inner.decode(ids[ids != IGNORE_INDEX].tolist())
    assert learned == {"all": "bb<|im_end|>dd<|im_end|>", "last": "dd<|im_end|>"}


def test_columns_are_mapped_to_known_names(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pt.jsonl", [{"pergunta": "oi?", "resposta": "oi!", "x": 1}])
    ((example,), _, notes) = read_examples(
        DataSettings(path=path, map="prompt=pergunta, completion=resposta"), needs_completion=True
    )
    assert (example.messages[0]["content"], example.completion) == ("oi?", "oi!")
    assert notes.layout is not None
    assert notes.layout.name == "prompt and completion"
    with pytest.raises(SettingsError, match=r"(?s)'perguntas', which is not a column.*'pergunta'"):
        read_examples(DataSettings(path=path, map="prompt=perguntas"), needs_completion=True)
    with pytest.raises(SettingsError, match="does not name columns"):
        read_examples(DataSettings(path=path, map="prompt"), needs_completion=True)


def test_a_chat_template_of_ones_own_stays_with_the_run(colours: Path, tiny_folder: Path, tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text(
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    settings = RunSettings(
        base=str(tiny_folder),
        out=tmp_path / "run",
        template=template,
        precision="fp32",
        data={"path": colours, "prompt": "{q}", "completion": "{a}"},
        train={"epochs": 1},
    )
    result = train(settings)
    template.unlink()
    again = evaluate(result.folder, colours)
    assert again.rows == 60
    assert (result.adapter / "chat_template.jinja").read_text().startswith("{% for m in messages %}[")


def test_mixing_and_replaying(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sea", "hill", "road", "lamp", "door", "bird", "salt", "corn", "rain", "wolf"]
    rows = [{"prompt": f"{words[i % 10]} {words[i // 10]} {i * 37}?", "completion": f"{i}"} for i in range(100)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    chats = [
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": f"{w} and {v}, please"},
                {"role": "assistant", "content": "y"},
            ]
        }
        for w in words
        for v in words[:3]
    ]
    other = write_rows(tmp_path / "b.jsonl", chats)
    general = tmp_path / "general.txt"
    general.write_text("\n\n".join(f"{w} of the {v}" for w in words for v in words))
    flags = ["--mix", f"{other}=0.2", "--replay", f"{general}=0.5", "--format", "parquet"]
    assert main(["data", "prepare", str(path), "--out", str(tmp_path / "out"), *flags]) == 0
    assert "rows in" in capsys.readouterr().out
    train_rows, rejected, _ = read_examples(DataSettings(path=tmp_path / "out/train.parquet"), needs_completion=True)
    test_rows, _, _ = read_examples(DataSettings(path=tmp_path / "out/test.parquet"), needs_completion=True)
    assert len(rejected) == 0
    asked = [e for e in train_rows if e.messages]
    assert len(asked) + len(test_rows) == 120
    assert len(train_rows) - len(asked) == round(0.5 * len(asked))
    assert all(e.messages for e in test_rows)
    assert sum(e.messages[0]["role"] == "system" for e in [*asked, *test_rows]) == 20
    assert f"mixed in from {tmp_path}" in (tmp_path / "out/README.md").read_text()
    assert ": 20 rows" in (tmp_path / "out/README.md").read_text()
    for wrong, words_ in (("b.jsonl", "is not a file and a number"), (f"{other}=9", "can be used")):
        assert main(["data", "prepare", str(path), "--out", str(tmp_path / "no"), "--mix", wrong]) == 2
        assert words_ in capsys.readouterr().err


def test_a_run_remembers_its_columns_and_scores_questions_only(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [{"pergunta": f"{'ab'[i % 2]}{i}", "resposta": "xy"[i % 2]} for i in range(40)]
    path = write_rows(tmp_path / "pt.jsonl", rows)
    settings = RunSettings(
        base=str(tiny_folder),
        out=tmp_path / "run",
        precision="fp32",
        train={"epochs": 1},
        data={"path": path, "map": "prompt=pergunta,completion=resposta", "learn": "last"},
    )
    train(settings)
    assert evaluate(tmp_path / "run", path).rows == 40
    mixed = write_rows(tmp_path / "mixed.jsonl", [{"text": "general"}, *rows])
    with pytest.raises(SettingsError, match="'pergunta'"):  # the first row has no such column
        evaluate(tmp_path / "run", mixed)
    plain = RunSettings(
        base=str(tiny_folder),
        out=tmp_path / "other",
        precision="fp32",
        train={"epochs": 1},
        data={
            "path": write_rows(
                tmp_path / "q.jsonl",
                [{"prompt": r["pergunta"], "completion": r["resposta"]} for r in rows] + [{"text": "general"}] * 5,
            ),
            "system": "Be brief.",
        },
    )
    train(plain)
    answers = generate(tmp_path / "other", tmp_path / "q.jsonl")
    assert len(answers) == 40
    assert evaluate(tmp_path / "other", tmp_path / "q.jsonl").rows == 40


def test_text_behind_many_questions_is_learned_too(tmp_path: Path, tiny) -> None:
    rows = [{"prompt": f"q {i}", "completion": f"a {i}"} for i in range(1200)] + [
        {"text": f"general {i}"} for i in range(9)
    ]
    parts = read_splits(DataSettings(path=write_rows(tmp_path / "m.jsonl", rows)), 0)
    assert len(parts.rejected) == 0
    assert "nothing but 'text'" in parts.notes.lines[-1]
    assert (
        len(render_splits(parts.resolved(), tiny.tokenizer, tiny.facts.context_length).train)
        == parts.train.sum()
        == 1209 - 120
    )
    odd = write_rows(tmp_path / "o.jsonl", [*rows[:20], {"text": "x", "completion": "y"}])
    assert len(read_splits(DataSettings(path=odd), 0).rejected) == 1
