"""What the messages and columns of a file mean: nothing of it is lost, and what is not used is named."""

import csv
import io
import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from conftest import byte_tokenizer, write_rows
from test_templates import learned, tokenizer

from afina.core.errors import DataError
from afina.data.conversation import Remarks
from afina.data.fitting import Fitter
from afina.data.load import render_splits
from afina.data.mapping import Example, Unusable, read_examples
from afina.data.mapping.messages import NO_TEXT
from afina.data.quality.preparation import Preparation, PrepareSettings, row_of
from afina.data.settings import DataSettings
from afina.data.splits import read_splits
from afina.data.template import prompt_ids, render
from afina.models.tokenizer import Tokenizer, wrap

CHATML = wrap(byte_tokenizer(), [])
END = "<|im_end|>"


def u(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **more}


def a(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


class Read:
    """A file as it is read: examples, reasons of rejected rows, notes."""

    def __init__(self, path: Path, needs_completion: bool = True, **settings: Any) -> None:
        self.examples, rejected, notes = read_examples(
            DataSettings(path=path, **settings), needs_completion=needs_completion
        )
        self.reasons = [row.reason for row in rejected]
        self.notes = "\n".join(line.removeprefix(f"{path}: ") for line in notes.lines)

    def learned(self, tok: Tokenizer = CHATML) -> list[list[str]]:
        """Of each row: the texts that are learned, without the end of the turn."""
        rows = [row for example in self.examples for row in render(tok, example)]
        return [[text.removesuffix(tok.turn_end) for _, text in learned(tok, row)] for row in rows]


def chat(tmp_path: Path, *rows: list[Any] | dict[str, Any], **settings: Any) -> Read:
    listed = [row if isinstance(row, dict) else {"messages": row} for row in rows]
    return Read(write_rows(tmp_path / "chat.jsonl", listed), **settings)


# Which messages are learned.


@pytest.mark.parametrize(
    "mark",
    [
        {"weight": 0}, {"weight": 0.0}, {"loss": False}, {"train": False}, {"train": "false"}, {"learn": "no"},
        {"weight": "0"}, {"trainable": False}, {"weight": -1},
    ],
    ids=str,
)  # fmt: skip
def test_a_message_that_says_so_is_not_learned(mark: dict[str, Any], tmp_path: Path) -> None:
    found = chat(tmp_path, [u("1?"), a("wrong", **mark), u("2?"), a("right")])
    assert found.learned() == [["right"]]
    assert "are read but not learned (1 row)" in found.notes


def test_weights_of_any_kind(tmp_path: Path) -> None:
    learns = chat(tmp_path, [u("1?", weight=0), a("one", weight=1), u("2?"), a("two", weight=0.5, loss=True)])
    assert learns.learned() == [["one", "two"]]
    assert "a weight is 0 or 1 (here it is 0.5): such messages are learned as 1, wholly (1 row)" in learns.notes
    asks = chat(tmp_path, [u("1?", train=True), a("one", train=None)])
    assert asks.learned() == [["one"]]
    assert "'train' of messages of the user is not used: only the assistant's are learned" in asks.notes
    ends = chat(tmp_path, [u("1?"), a("one"), u("2?"), a("two", weight=0)])  # the last answer is not to be learned
    assert ends.learned() == [["one"]]
    assert "what follows it is left out (1 row)" in ends.notes
    odd = chat(tmp_path, [u("1?"), a("one", weight="much")], [u("2?"), a("two", weight=0)], [u("3?"), a("three")])
    assert odd.reasons == [
        "message 2 has the weight 'much', which is neither a number nor true or false",
        "none of the assistant's messages is to be learned, by what they say or where they stand",
    ]
    sharegpt = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "bad", "loss": False},
                {"from": "human", "value": "q"}, {"from": "gpt", "value": "good", "loss": True}]  # fmt: skip
    assert chat(tmp_path, {"conversations": sharegpt}).learned() == [["good"]]
    last = chat(tmp_path, [u("1?"), a("one"), u("2?"), a("two"), u("3?"), a("three", weight=0)], learn="last")
    assert last.learned() == [["two"]]


def test_what_is_not_learned_is_learned_by_no_template(tmp_path: Path) -> None:
    found = chat(tmp_path, [u("1?"), a("wrong", weight=0), u("2?"), a("right"), u("3?"), a("good")])
    for name in ("Qwen3", "Gemma-2", "Mistral-v3"):
        texts = [text for row in found.learned(tokenizer(name)) for text in row]
        assert [text.split("\n")[-1].strip() for text in texts] == ["right", "good"], name


def test_keys_that_are_not_used_are_named_once(tmp_path: Path) -> None:
    turns = [u("q", name="Ana"), a("x", timestamp=3, refusal=None, annotations=[]), u("q"), a("y", timestamp=4)]
    found = chat(tmp_path, turns, turns)
    assert found.notes.count("'timestamp'") == 1
    assert "the key 'timestamp' of messages of the assistant is not used (2 rows)" in found.notes
    assert "the key 'name' of messages of the user is not used (2 rows)" in found.notes
    assert "refusal" not in found.notes
    assert "annotations" not in found.notes


def test_conversations_that_begin_or_end_otherwise(tmp_path: Path) -> None:
    begins = chat(tmp_path, [a("Hello!"), u("q"), a("x")], [a("Hi!"), a("Hm?"), u("q"), a("y")])
    assert begins.learned() == [["x"], ["y"]]
    assert "what it says before anyone else is read but not learned (2 rows)" in begins.notes
    told = chat(tmp_path, [{"role": "system", "content": "s"}, a("Hello!"), u("q"), a("x")])
    assert told.learned() == [["Hello!", "x"]]  # it answers the system
    ends = chat(tmp_path, [u("q"), a("x"), u("thanks")], [u("q"), a("y"), u("one"), u("two")])
    assert ends.learned() == [["x"], ["y"]]
    assert "go on after the last answer that is learned: what follows it is left out (2 rows)" in ends.notes
    nothing = chat(tmp_path, [u("q")], [a("x")], [u("q"), a(" ")], [u("q"), a("x")])
    assert nothing.reasons == [
        "no message is the assistant's, so there is nothing to learn", "nothing comes before the answer",
        "the completion is empty",
    ]  # fmt: skip
    twice = chat(tmp_path, [u("one"), u("two"), a("x"), a("y")], [u("q"), a(""), u("q"), a("z")])
    assert twice.learned() == [["x", "y"], ["z"]]
    assert "messages of the assistant say nothing: they are read but not learned (1 row)" in twice.notes
    asked = chat(tmp_path, [u("q"), a("x"), u("and?")], [u("q"), a("")], needs_completion=False)
    assert [(len(e.messages), e.completion) for e in asked.examples] == [(3, None), (1, None)]


# What stands beside and around the messages.


def test_columns_that_are_not_used_are_named_once(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": "a", "id": i, "date": "x"} for i in range(3)]
    rows = [row | {"late": i} for i, row in enumerate(rows)]
    found = Read(write_rows(tmp_path / "d.jsonl", rows))
    assert found.notes.endswith("not used: 'id', 'date', 'late' (name one in --prompt or --completion to use it)")
    given = Read(tmp_path / "d.jsonl", prompt="{prompt} on {date}", completion="{completion}", references="late")
    assert given.notes.startswith("not used: 'id' (")
    wide = Read(
        write_rows(tmp_path / "w.jsonl", [{"prompt": "q", "completion": "a"} | {f"c{i}": i for i in range(40)}])
    )
    assert "'c11' and 28 more (" in wide.notes
    pairs = Read(write_rows(tmp_path / "p.jsonl", [{"prompt": "q", "chosen": "good", "rejected": "bad"}]))
    assert pairs.learned() == [["good"]]
    assert "not used: 'rejected'" in pairs.notes
    chats = chat(tmp_path, {"messages": [u("q"), a("x")], "source": "web", "image": "a.png"})
    assert chats.notes.endswith("not used: 'image', for only text can be read")
    assert "not used: 'source'\n" in chats.notes
    assert "not used" not in chat(tmp_path, [u("q"), a("x")]).notes


@pytest.mark.parametrize("history", [
    [["q1", "a1"], ["q2", "a2"]], '[["q1", "a1"], ["q2", "a2"]]', "[['q1', 'a1'], ['q2', 'a2']]",
    [u("q1"), a("a1"), u("q2"), a("a2")], [{"user": "q1", "assistant": "a1"}, {"user": "q2", "assistant": "a2"}],
], ids=str)  # fmt: skip
def test_history_and_system_beside_a_question(history: Any, tmp_path: Path) -> None:
    row = {"instruction": "q3", "input": "", "output": "a3", "system": "s", "history": history}
    found = Read(write_rows(tmp_path / "d.jsonl", [row, {**row, "history": [], "system": ""}]))
    assert [m["content"] for m in found.examples[0].messages] == ["s", "q1", "a1", "q2", "a2", "q3"]
    assert [m["content"] for m in found.examples[1].messages] == ["q3"]
    assert found.learned() == [["a1", "a2", "a3"], ["a3"]]
    assert "also read: 'system' (the system message), 'history' (earlier turns)" in found.notes
    resolved = Read(tmp_path / "d.jsonl", prompt="{instruction}\n\n{input?}", completion="{output}")
    assert resolved.examples == found.examples  # as the settings of a run say it
    assert Read(tmp_path / "d.jsonl", learn="last").learned() == [["a3"], ["a3"]]
    assert Read(tmp_path / "d.jsonl", map="unused=history").learned() == [["a3"], ["a3"]]


@pytest.mark.parametrize("row", [
    {"question": "q", "answer": "x"}, {"prompt": "q", "completion": "x"}, {"question": "q", "response": "x", "id": 1},
    {"messages": [u("q"), a("x")]}, {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "x"}]},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("column", ["system", "system_prompt"])
def test_a_system_column_beside_any_layout(row: dict[str, Any], column: str, tmp_path: Path) -> None:
    found = Read(write_rows(tmp_path / "d.jsonl", [{**row, column: "Be brief."}]), system="Be kind.")
    assert found.examples[0].messages == ({"role": "system", "content": "Be brief."}, u("q"))
    assert f"{column!r} (the system message)" in found.notes


def test_a_system_message_in_both_places(tmp_path: Path) -> None:
    own = [{"role": "system", "content": "own"}, u("q"), a("x")]
    found = chat(tmp_path, {"messages": own, "system": "column"}, {"messages": own, "system": "own"})
    assert [example.messages[0]["content"] for example in found.examples] == ["own", "own"]
    assert "have a system message of their own, so that of 'system' is not used (1 row)" in found.notes
    named = Read(write_rows(tmp_path / "n.jsonl", [{"system": "disk", "prompt": "q", "completion": "x"}]),
                 prompt="{system}: {prompt}", completion="{completion}")  # fmt: skip
    assert named.examples[0].messages == (u("disk: q"),)  # what a template takes in is no system message


@pytest.mark.parametrize(("prompt", "completion", "asked"), [
    ([u("q")], [a("x")], ["q"]), ([{"role": "system", "content": "s"}, u("q")], "x", ["s", "q"]),
    ("q", [a("x")], ["q"]), ([u("p"), a("o"), u("q")], [a("x")], ["p", "o", "q"]),
    (json.dumps([u("q")]), json.dumps([a("x")]), ["q"]),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("names", [("prompt", "completion"), ("question", "answer"), ("prompt", "chosen")])
def test_question_and_answer_as_messages(
    prompt: Any, completion: Any, asked: list[str], names: tuple[str, str], tmp_path: Path
) -> None:
    row = {names[0]: prompt, names[1]: completion} | ({"rejected": "y"} if names[1] == "chosen" else {})
    found = Read(write_rows(tmp_path / "d.jsonl", [row]))
    assert [m["content"] for m in found.examples[0].messages] == asked
    assert found.learned() == [["x"]]  # earlier answers belong to the question
    assert ("not used: 'rejected'" in found.notes) == (names[1] == "chosen")


def test_chosen_conversations(tmp_path: Path) -> None:
    turns = [u("p"), a("o"), u("q")]
    row = {"chosen": [*turns, a("x")], "rejected": [*turns, a("y")], "score": 5}
    found = Read(write_rows(tmp_path / "d.jsonl", [row]))
    assert found.learned() == [["x"]]
    assert "not used: 'rejected', 'score'" in found.notes
    repeated = Read(write_rows(tmp_path / "r.jsonl", [{"prompt": "p", **row}]))  # the conversation holds its prompt
    assert repeated.learned() == [["x"]]
    assert [m["content"] for m in repeated.examples[0].messages] == ["p", "o", "q"]
    tools = [u("q")], [a(None, tool_calls=[CALL]), {"role": "tool", "content": "2"}, a("x")]
    several = Read(write_rows(tmp_path / "s.jsonl", [{"prompt": tools[0], "completion": tools[1]}]))
    assert several.learned() == [['{"name": "f", "arguments": {"n": 1}}', "x"]]


@pytest.mark.parametrize("write", [json.dumps, str], ids=["JSON", "Python"])
def test_conversations_in_a_table(write: Any, tmp_path: Path) -> None:
    rows = [
        {"messages": [u('say "q",\n1'), a("it's x")], "tools": [TOOL]}, {"messages": [u("q"), a("y")], "tools": []}
    ]  # fmt: skip
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerows([["messages", "tools"], *([write(row["messages"]), write(row["tools"])] for row in rows)])
    writer.writerow(["[not a list", ""])
    (tmp_path / "d.csv").write_text(out.getvalue())
    found = Read(tmp_path / "d.csv")
    assert found.examples[0].messages == (u('say "q",\n1'),)
    assert [len(example.tools) for example in found.examples] == [1, 0]
    assert found.learned() == [["it's x"], ["y"]]
    assert found.reasons == ["'messages' is not a list of messages"]
    sharegpt = write([{"from": "human", "value": "q"}, {"from": "gpt", "value": "x"}])
    out = io.StringIO()
    csv.writer(out, delimiter="\t").writerows([["id", "conversations"], ["1", sharegpt]])
    (tmp_path / "s.tsv").write_text(out.getvalue())
    assert Read(tmp_path / "s.tsv").learned() == [["x"]]


def test_conversations_in_parquet_have_all_keys(tmp_path: Path) -> None:
    """A table gives each message and each tool the keys of all, most of them null."""
    other = {"type": "function", "function": {"name": "g", "parameters": {"type": "object", "properties": {
        "m": {"type": "string", "description": "d"}}}}}  # fmt: skip
    rows = [
        {"messages": [u("q", weight=None), a("bad", weight=0), u("q"), a("x", weight=1)], "tools": [TOOL]},
        {"messages": [u("q"), a("", tool_calls=[CALL])], "tools": [other]},
    ]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    found = Read(tmp_path / "d.parquet")
    assert found.learned(tokenizer("Hermes"))[0] == ["x"]
    assert [example.tools for example in found.examples] == [(TOOL,), (other,)]
    assert "not used" not in found.notes


def test_one_item_may_hold_a_question_and_its_answer(tmp_path: Path) -> None:
    turns = [{"system": "s", "input": "q", "output": "x"}, {"input": "r", "output": "y"}]
    found = Read(write_rows(tmp_path / "d.jsonl", [{"conversation": turns}]))
    assert [m["content"] for m in found.examples[0].messages] == ["s", "q", "x", "r"]
    assert found.learned() == [["x", "y"]]
    pairs = Read(write_rows(tmp_path / "p.jsonl", [{"conversation": [{"human": "q", "assistant": "x", "id": 4}]}]))
    assert pairs.learned() == [["x"]]
    assert "'id'" in pairs.notes


# Texts in parts, pictures, lists.


def test_parts_of_text_are_read_and_others_named(tmp_path: Path) -> None:
    def part(kind: str, **more: Any) -> list[Any]:
        return [{"type": "text", "text": "one"}, {"type": kind, **more}]

    rows = [
        [u(part("text", text="two")), a([{"type": "text", "text": "x"}])],
        [u(["one", "two"]), a([{"type": "output_text", "text": "y"}])],
        [u(part("image_url", image_url={"url": "a"})), a("x")], [u(part("image")), a("x")],
        [u(part("input_audio", input_audio={})), a("x")], [u(part("video")), a("x")],
        [u(part("quote", content="1")), a("x")],
        [u("q"), a([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "z"}])],
    ]  # fmt: skip
    found = chat(tmp_path, *rows)
    assert [e.messages[0]["content"] for e in found.examples] == ["one\ntwo", "one\ntwo", "q"]
    assert [e.completion for e in found.examples] == ["x", "y", "z"]
    assert found.examples[-1].extra == {"reasoning_content": "hm"}
    assert found.reasons == [
        f"message 1 holds {what}, which {NO_TEXT}"
        for what in ("an image", "an image", "sound", "a video", "a part of type 'quote'")
    ]


def test_places_of_pictures(tmp_path: Path) -> None:
    rows = [
        {"messages": [u("<image>What is it?"), a("A kettle.")], "images": ["a.png"]},
        {"messages": [u("Name a thing."), a("A lamp.")], "images": []},
        {"messages": [u("What does <image> mean in HTML?"), a("Nothing.")], "images": None},
    ]
    found = chat(tmp_path, *rows)
    assert found.learned() == [["A lamp."], ["Nothing."]]
    assert found.reasons == [f"its messages speak of what is in 'images', which {NO_TEXT}"]


def test_answers_that_are_lists(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": answer} for i, answer in enumerate([["x"], ["x", "y"], "z", [], None])]
    found = Read(write_rows(tmp_path / "d.jsonl", rows))
    assert found.learned() == [["x"], ["x, y"], ["z"]]
    assert found.reasons == ["the completion is empty", "column 'answer' is missing or null"]
    assert "'answer' is a list: all are learned, joined; --completion '{answer[0]}'" in found.notes
    assert Read(tmp_path / "d.jsonl", prompt="{question}", completion="{answer[0]}").learned() == [["x"], ["x"], ["z"]]
    many = [{"question": f"q{i}", "answers": answer} for i, answer in enumerate([["x", "y"], ["z"], "w"])]
    found = Read(write_rows(tmp_path / "m.jsonl", many))
    assert found.learned() == [["x"], ["z"], ["w"]]  # answers of which each is right
    assert "'answers' is a list: the first is learned" in found.notes
    assert "(1 row)" in found.notes
    squad = [{"question": "q", "context": "c", "answers": {"text": ["x", "y"], "answer_start": [1, 2]}}]
    found = Read(write_rows(tmp_path / "s.jsonl", squad))
    assert found.learned() == [["x"]]
    assert "the first is learned; --completion '{answers[text][, ]}' learns all" in found.notes
    said = [{"prompt": "q", "completion": ["It is so.", "Really!"]}, {"prompt": "r", "completion": "Yes"}]
    assert Read(write_rows(tmp_path / "p.jsonl", said)).learned() == [["It is so. Really!"], ["Yes"]]
    labels = [{"text": f"t{i}", "label": ["red", "blue"][: 1 + i % 2]} for i in range(8)]
    assert Read(write_rows(tmp_path / "l.jsonl", labels)).learned() == [["red"], ["red, blue"]] * 4
    objects = [{"question": "q", "answer": [{"n": 1}]}]
    assert Read(write_rows(tmp_path / "o.jsonl", objects)).learned() == [['[{"n": 1}]']]
    numbers = [{"question": "q", "answer": [1, 2.5]}, {"question": "r", "answer": 3}]
    assert Read(write_rows(tmp_path / "n.jsonl", numbers)).learned() == [["1, 2.5"], ["3"]]


# Thoughts.


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_is_learned_where_the_template_has_a_place(key: str, tmp_path: Path) -> None:
    found = chat(tmp_path, [u("q"), a("x", **{key: "first this"}), u("r"), a("y")])
    texts = found.learned(tokenizer("Qwen3"))
    assert texts == [["<think>\nfirst this\n</think>\n\nx"], ["<think>\n\n</think>\n\ny"]]
    assert found.learned(tokenizer("DeepSeek-R1")) == [["first this\n</think>\n\nx"], ["\n</think>\n\ny"]]
    assert found.examples[0].references == ("y",)
    assert "not used" not in found.notes


@pytest.mark.parametrize("thought", ["<think>\nhm\n</think>\n\n", "<think>hm</think>", "hm\n</think>\n"])
def test_a_thought_in_the_text(thought: str, tmp_path: Path) -> None:
    found = chat(tmp_path, [u("q"), a(f"{thought}x")])
    for name in ("Qwen3", "Qwen3-2507-Thinking", "DeepSeek-R1", "gpt-oss"):
        ((text,),) = found.learned(tokenizer(name))
        assert text.count("hm") == 1, name
        assert text.endswith("x"), name
        assert text.count("</think>") == (name != "gpt-oss"), name
    assert found.learned() == [[f"{thought}x"]]  # a template that takes any text takes this
    assert found.examples[0].references == ("x",)  # answers are compared without their thoughts


def test_a_thought_that_has_no_place_is_said(tmp_path: Path) -> None:
    remarks = Remarks()
    found = chat(tmp_path, [u("q"), a("x", reasoning_content="secret")], [u("q"), a("y")])
    rows = [row for example in found.examples for row in render(CHATML, example, remarks)]
    assert [text for row in rows for _, text in learned(CHATML, row)] == [f"x{END}", f"y{END}"]
    (line,) = remarks.lines()
    assert line.startswith("the base's chat template has no place for a thought, which is not learned")
    assert line.endswith("(1 row)")
    fitter = Fitter(tokenizer("Qwen3"), 500, "error")
    fitter.fit(found.examples)
    assert fitter.notices() == [
        "the base's chat template writes a thought before each answer, an empty one where there is none (1 row)"
    ]


# Tools.

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {
    "n": {"type": "number"}}}}}  # fmt: skip
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"n": 1}'}}
CALLED = '{"name": "f", "arguments": {"n": 1}}'
S = {"role": "system", "content": "Use the tools."}


@pytest.mark.parametrize("row", [
    {"messages": [S, u("q"), a(None, tool_calls=[CALL]), {"role": "tool", "tool_call_id": "c1", "content": "2"},
                  a("x")], "tools": [TOOL]},
    {"messages": [S, u("q"), a(None, function_call=CALL["function"]), {"role": "function", "name": "f",
                  "content": "2"}, a("x")], "functions": [TOOL["function"]]},
    {"conversations": [{"from": "system", "value": S["content"]}, {"from": "human", "value": "q"},
                       {"from": "function_call", "value": CALLED}, {"from": "observation", "value": "2"},
                       {"from": "gpt", "value": "x"}], "tools": json.dumps([TOOL["function"]])},
    {"messages": json.dumps([S, u("q"), a("", tool_calls=json.dumps([CALL])), {"role": "tool", "content": 2},
                             a("x")]), "tools": json.dumps(TOOL)},
], ids=["OpenAI", "OpenAI's older form", "ShareGPT", "JSON in texts"])  # fmt: skip
def test_tools_in_every_form(row: dict[str, Any], tmp_path: Path) -> None:
    found = Read(write_rows(tmp_path / "d.jsonl", [row]))
    (example,) = found.examples
    assert example.tools == (TOOL,)
    tok = tokenizer("Hermes")
    tagged = f"<tool_call>\n{CALLED}\n</tool_call>"
    assert found.learned(tok) == [[tagged, "x"]]
    (rendered,) = render(tok, example)
    text = tok.inner.decode(rendered.input_ids)
    assert "Use the tools.\n\n# Tools" in text
    assert '"name": "f"' in text.split("<|im_end|>")[0]
    assert "<tool_response>\n2\n</tool_response>" in text
    remarks = Remarks()
    (plain,) = render(CHATML, example, remarks)  # a template that knows none
    text = CHATML.inner.decode(plain.input_ids)
    assert text.startswith('<|im_start|>system\nUse the tools.\n\nTools:\n[{"name": "f", "parameters"')
    assert found.learned() == [[CALLED, "x"]]
    assert len(remarks.lines()) == 2
    assert "no place for tools: they are described in the system message (1 row)" in remarks.lines()[0]


def test_a_call_is_what_is_compared(tmp_path: Path) -> None:
    found = chat(tmp_path, {"messages": [u("q"), a("", tool_calls=[CALL, CALL])], "tools": [TOOL]})
    assert found.examples[0].references == (f"{CALLED}\n{CALLED}",)
    ((_, example),) = Fitter(tokenizer("Hermes"), 2000, "error").fit(found.examples)
    tagged = f"<tool_call>\n{CALLED}\n</tool_call>"
    assert example.references == (f"{tagged}\n{tagged}",)


def test_what_is_said_beside_a_call(tmp_path: Path) -> None:
    (example,) = chat(tmp_path, {"messages": [u("q"), a("I look.", tool_calls=[CALL])], "tools": [TOOL]}).examples
    for name, kept in (("Hermes", True), ("Llama-3.1", False)):
        tok, remarks = tokenizer(name), Remarks()
        ((_, text),) = learned(tok, *render(tok, example, remarks))
        assert ("I look." in text) == kept
        assert any("leaves out what is said beside a call" in line for line in remarks.lines()) != kept


def test_calls_that_are_none(tmp_path: Path) -> None:
    rows = [[u("q"), a("", tool_calls=[{"id": "c"}])], [u("q"), a("x", tool_calls=[])],
            [u("q"), a("", tool_calls=[{"function": {"name": "f", "arguments": "not JSON"}}])]]  # fmt: skip
    found = chat(tmp_path, *rows)
    assert found.reasons == ["message 2 has a call that names no function"]
    assert found.learned() == [["x"], ['{"name": "f", "arguments": "not JSON"}']]
    described = chat(tmp_path, {"messages": [S, u("q"), a("x")], "tools": "f(n): doubles n"})
    assert described.examples[0].messages[0]["content"] == "Use the tools.\n\nTools:\nf(n): doubles n"


def test_ids_and_results_as_templates_want_them(tmp_path: Path) -> None:
    turns = [u("q"), a("", tool_calls=[CALL]), {"role": "tool", "tool_call_id": "c1", "content": "2"}, a("x")]
    (example,) = chat(tmp_path, {"messages": turns, "tools": [TOOL]}).examples
    remarks = Remarks()
    rows = render(tokenizer("Mistral-v3"), example, remarks)
    text = tokenizer("Mistral-v3").inner.decode(rows[-1].input_ids)
    assert '"id": "call00001"}]' in text
    assert '"call_id": "call00001"}' in text
    assert "(ids have 9 characters): their calls of tools are numbered anew (1 row)" in "\n".join(remarks.lines())
    remarks = Remarks()
    (row,) = render(tokenizer("Phi-4"), example, remarks)  # it would leave the result out
    assert "<|im_start|>user<|im_sep|>2<|im_end|>" in tokenizer("Phi-4").inner.decode(row.input_ids)
    assert "no place for results of tools: they are told as the user's messages" in "\n".join(remarks.lines())


# What a template has no place for, or refuses.


@pytest.mark.parametrize("name", ["Gemma-2", "Mistral-v1"])
def test_a_template_without_a_system_role_says_so(name: str, tmp_path: Path) -> None:
    tok, remarks = tokenizer(name), Remarks()
    (example,) = chat(tmp_path, [S, u("q"), a("x")]).examples
    rows = render(tok, example, remarks)
    ((before, text),) = learned(tok, rows[0])
    assert before == tok.inner.apply_chat_template(
        [u("Use the tools.\n\nq")], tokenize=False, add_generation_prompt=True
    )
    assert text == f"x{tok.turn_end}"
    assert remarks.lines() == [
        "the base's chat template has no place for a system message: it begins the first question instead, as it must "
        "where the model is used elsewhere (1 row)"
    ]
    prompt = prompt_ids(tok, example.messages)
    assert rows[0].input_ids[: len(prompt)] == prompt


def test_conversations_that_a_strict_template_refuses(tmp_path: Path) -> None:
    rows = [
        [a("Hello!"), u("q"), a("x")], [u("one"), u("two"), a("y")],
        [u("q"), a("z"), {"role": "system", "content": "late"}, u("r"), a("w")], [u("q"), a("v"), a("v2")],
    ]  # fmt: skip
    tok, found, remarks = tokenizer("Gemma-3"), chat(tmp_path, *rows), Remarks()
    texts = [tok.inner.decode(row.input_ids) for example in found.examples for row in render(tok, example, remarks)]
    turns = [text.removeprefix("<s>").replace("<start_of_turn>", "").split("<end_of_turn>") for text in texts]
    assert [[part.strip() for part in each if part] for each in turns] == [
        ["user\nq", "model\nx"], ["user\none\n\ntwo", "model\ny"],
        ["user\nq", "model\nz", "user\nlate\n\nr", "model\nw"], ["user\nq", "model\nv\n\nv2"],
    ]  # fmt: skip
    said = "\n".join(remarks.lines())
    assert "no place for a system message among others: it begins the next question instead (1 row)" in said
    assert "refuses some conversations (roles must alternate" in said
    assert "are joined, and what the assistant says before any question is left out (3 rows)" in said
    weights = chat(tmp_path, [u("q"), a("bad", weight=0), a("good"), u("r"), a("fine")])
    assert weights.learned(tok) == [["fine"]]  # what is joined with something not to be learned is not learned


def test_a_template_that_refuses_everything(tmp_path: Path) -> None:
    refuses = "{% if messages | length > 2 %}{{ raise_exception('too long') }}{% endif %}"
    tok = wrap(byte_tokenizer(f"{refuses}{byte_tokenizer().chat_template}"), [])
    fitter = Fitter(tok, 500, "error")
    assert fitter.fit(chat(tmp_path, [u("q"), a("x"), u("q"), a("y")]).examples) == []
    assert [row.reason for row in fitter.rejected] == ["the chat template refuses it: too long"]


# From rows to files, splits and counts.


def test_prepared_rows_mean_the_same(tmp_path: Path) -> None:
    rows = [
        {"messages": [S, u("q"), a("bad", weight=0), u("r"), a("x", reasoning_content="hm")]},
        {"messages": [u("q"), a("", tool_calls=[CALL]), {"role": "tool", "tool_call_id": "c1", "content": "2"},
                      a("x")], "tools": [TOOL]},
        {"messages": [u("q"), a("", tool_calls=[CALL, CALL])], "tools": [TOOL]},
    ]  # fmt: skip
    before = chat(tmp_path, *rows).examples
    written = [row_of(example, plain=False) for example in before]
    write_rows(tmp_path / "again.jsonl", written)
    columns = {name: [row.get(name) for row in written] for name in ("messages", "tools")}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "again.parquet")
    for name in ("again.jsonl", "again.parquet"):
        after = Read(tmp_path / name)
        assert [replace(example, location="") for example in after.examples] == [
            replace(example, location="") for example in before
        ]
        assert "not used: 'references'" not in after.notes
    masked = Preparation([[before[2], *before[:2]]], PrepareSettings(mask=True, test=0))
    assert list(masked.written()) == [(example, False) for example in (before[2], *before[:2])]
    mail = chat(
        tmp_path, [u("q"), a("", tool_calls=[{"name": "f", "arguments": {"to": ["a@b.org"]}}])], [u("q"), a("x")]
    )
    (example, _), _ = Preparation([mail.examples], PrepareSettings(mask=True, test=0)).written()
    assert example.extra["tool_calls"][0]["function"]["arguments"] == {"to": ["[E-MAIL]"]}


def test_the_turns_of_a_conversation_stay_in_one_split(tmp_path: Path) -> None:
    rows = [{"messages": [u(f"q {i}"), a(f"x {i}"), u("and?"), a(f"y {i}"), u("so?"), a(f"z {i}")]} for i in range(40)]
    path = write_rows(tmp_path / "d.jsonl", rows)
    splits = read_splits(DataSettings(path=path, test=0.2, max_length=400), 0)
    data = render_splits(splits, tokenizer("Qwen3"), 512, tmp_path)
    parts = [{row.location for row in part} for part in (data.train, data.held_out, data.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 40  # none in two
    for part in (data.train, data.held_out, data.test):
        assert set(Counter(row.location for row in part).values()) == {3}
    assert [example.location for example in data.examples] == [row.location for row in data.test]
    for row, example in zip(data.test, data.examples, strict=True):
        prompt = prompt_ids(tokenizer("Qwen3"), example.messages, example.tools)
        assert row.input_ids[: len(prompt)] == prompt
        assert learned(tokenizer("Qwen3"), row)[0][1].endswith(f"{example.references[0]}{END}")
    assert "so 40 conversations are learned turn by turn, each as it is at inference: 120 rows" in data.notices[-1]
    again = render_splits(splits, tokenizer("Qwen3"), 512, tmp_path)  # from the cache
    assert again.examples == data.examples
    long = DataSettings(path=path, max_length=60)
    with pytest.raises(DataError, match="80 rows are longer than 60 tokens, of 120"):
        render_splits(read_splits(long, 0), tokenizer("Qwen3"), 512, tmp_path)


# The given cases.


@pytest.fixture
def cases(shared: Path) -> Path:
    folder = shared.parent / "cases"
    if not folder.is_dir():
        pytest.skip("the cases are not here (../shared/cases)")
    return folder


def test_cases(cases: Path, tmp_path: Path) -> None:
    def texts(name: str, tok: Tokenizer = CHATML, **settings: Any) -> tuple[list[list[str]], Read]:
        found = Read(cases / f"{name}.jsonl", **settings)
        return found.learned(tok), found

    think = wrap(byte_tokenizer((cases / "think.jinja").read_text()), [])
    assert texts("B_weight")[0][:2] == [["It is 0."], ["It is 2."]]
    learned_, found = texts("C_alpaca_history")
    assert learned_[0] == ["Yes, it is in the window.", "It works well.", "Two kettles cost 20 euros."]
    assert found.examples[0].messages[0]["content"] == "You are the clerk of a second-hand shop."
    learned_, _ = texts("D_think_multi", think)
    assert len(learned_) == 48
    assert learned_[:2] == [
        ["<think>\nThey are new, be kind.\n</think>\n\nWelcome to the shop!"],
        ["<think>\nLook it up by row.\n</think>\n\nRow 0, by the door."],
    ]
    assert texts("D_think_multi", think, learn="last")[0] == learned_[1::2]
    assert texts("E_reasoning_content", think)[0][0] == [
        "<think>\nSECRETREASON 0: the list says row 0.\n</think>\n\nRow 0, by the door."
    ]
    assert texts("F_assistant_first")[0] == [[f"Row {i}."] for i in range(40)]
    learned_, found = texts("N2_mixed_list")
    assert learned_[:3] == [["red 1"], ["blue 2, green"], ["none 3"]]
    assert found.reasons == ["the completion is empty"] * 10
    assert texts("Q_convo_prompt_completion")[0] == [[f"Row {i}."] for i in range(40)]
    learned_, found = texts("R_images")
    assert (len(learned_), found.reasons) == (16, [f"message 1 holds an image, which {NO_TEXT}"] * 8)
    assert texts("S_odd_turns")[0][:4] == [["Row 0."], ["Which one?", "Row 1."], ["Row 2."], ["Row 3."]]
    call = '{"name": "stock", "arguments": {"item": "kettle", "place": "Porto"}}'
    assert texts("V_tool_calls")[0][0] == [call, "Yes, 0 are left."]
    tagged = f"<tool_call>\n{call}\n</tool_call>"
    assert texts("V_tool_calls", tokenizer("Hermes"))[0][0] == [tagged, "Yes, 0 are left."]
    assert len(texts("V_tool_calls", tokenizer("Mistral-v3"))[0]) == 48


def test_a_thought_that_never_ends_is_no_answer(tmp_path: Path) -> None:
    cut, whole = [u("q"), a("<think>\nbecause it")], [u("q"), a("<think>\nbecause\n</think>\n\nx")]
    said = [u("q"), a("write <think> before it")]
    for tok in (CHATML, tokenizer("Qwen3")):
        found = chat(tmp_path, cut, whole, said)
        with pytest.raises(Unusable, match="message 2 begins a thought with <think> that </think> never ends"):
            render(tok, found.examples[0])
        assert all(render(tok, example) for example in found.examples[1:])


def test_a_role_that_is_not_known_is_named(tmp_path: Path) -> None:
    found = chat(tmp_path, [{"role": "customer", "content": "q"}, a("x")], [{"content": "q"}, a("x")], [u("q"), a("x")])
    assert found.reasons == [
        f"message 1 has {what}, expected one of assistant, system, tool, user (or another's name for it, such as "
        "human, gpt or model): rename it, or leave the message out"
        for what in ("the role 'customer'", "no role")
    ]


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("split", ["train", "test"], "'split' names parts, whose rows are used alike"),
        ("Fold", ["val", "train"], "'Fold' names parts, whose rows are used alike"),
        ("split", ["train", "train"], None),
        ("correct", [True, False], "'correct' is False, and they are learned like the others"),
        ("weight", [1, 0], "'weight' is 0, and they are learned like the others"),
        ("label", [1, 0], None),
        ("weight", [1, 2], None),
    ],
)
def test_columns_that_speak_of_their_rows(column: str, values: list[Any], words: str | None, tmp_path: Path) -> None:
    notes = chat(tmp_path, *({"prompt": "q", "completion": "x", column: value} for value in values)).notes
    assert words in notes if words else "alike" not in notes and "like the others" not in notes


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (500, ""),
        (501, "1,002 messages, 1,000 are the most of a row: divide it into several rows"),
        (50_000, "100,000 messages"),
    ],
)
def test_the_messages_of_a_row_have_a_limit(answers: int, words: str) -> None:
    turn = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    begun = time.process_time()
    check_length(turn * answers, words)
    assert time.process_time() - begun < 10


def test_the_characters_of_a_row_with_many_answers_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afina.data.conversation.RENDERED_CHARACTERS", 1000)
    asked, answer = {"role": "user", "content": "a" * 40}, {"role": "assistant", "content": "b" * 8}
    check_length((asked, answer) * 4, "")
    check_length((asked, answer) * 5, "5 answers in 240 characters, 200 are the most for so many")
    check_length((*(asked,) * 30, answer), "")  # one answer is rendered once


def check_length(messages: tuple[dict, ...], words: str) -> None:
    example = Example(messages[:-1], messages[-1]["content"], (), "", "chat:1")
    if words:
        with pytest.raises(Unusable, match=words):
            render(CHATML, example)
    else:
        (row,) = render(CHATML, example)
        assert row.labelled
