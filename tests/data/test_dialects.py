"""Forms of conversations and questions that programs write: dialogues in one text, Anthropic's, Gemini's and OpenAI's
parts, preference data, SQuAD's articles."""

import json
from pathlib import Path
from typing import Any

import pytest

from afina.core.errors import DataError
from afina.data.layouts import transcript
from afina.data.mapping import Example, read_examples
from afina.data.settings import DataSettings


def examples(path: Path, *rows: Any) -> list[Example]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_examples(DataSettings(path=path), needs_completion=True)[0]


def said(example: Example) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in (*example.messages, example.answer)]


@pytest.mark.parametrize(("text", "turns"), [
    ("\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: a\n\nb: c\n\nAssistant: d", ["Hi", "Yes?", "a\n\nb: c", "d"]),
    ("Human: Hi\nAssistant: Yes?", ["Hi", "Yes?"]),
    ("### Human: Hi### there\n### Assistant: Yes?", ["Hi### there", "Yes?"]),
    ("User: one\ntwo\nBot: three", ["one\ntwo", "three"]),
    ("Human: alone", []), ("He said: Human: x\n\nAssistant: y", []), ("", []), (None, []), ([], []),
])  # fmt: skip
def test_dialogues_in_one_text(text: Any, turns: list[str]) -> None:
    assert [turn["value"] for turn in transcript(text)] == turns


def test_of_preferred_dialogues_the_last_answer_is_learned(tmp_path: Path) -> None:
    rows = [
        {"chosen": f"\n\nHuman: Hi {i}\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant: good {i}",
         "rejected": f"\n\nHuman: Hi {i}\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant: bad {i}"} for i in range(3)
    ]  # fmt: skip
    found = examples(tmp_path / "hh.jsonl", *rows)
    assert said(found[1]) == [("user", "Hi 1"), ("assistant", "Yes?"), ("user", "Why?"), ("assistant", "good 1")]
    assert found[1].unlearned == (1,)


def test_openais_preference_data(tmp_path: Path) -> None:
    rows = [
        {"input": {"messages": [{"role": "user", "content": f"q {i}"}], "tools": [], "parallel_tool_calls": True},
         "preferred_output": [{"role": "assistant", "content": f"good {i}"}],
         "non_preferred_output": [{"role": "assistant", "content": f"bad {i}"}]} for i in range(3)
    ]  # fmt: skip
    path = tmp_path / "dpo.jsonl"
    assert said(examples(path, *rows)[2]) == [("user", "q 2"), ("assistant", "good 2")]
    _, _, notes = read_examples(DataSettings(path=path), needs_completion=True)
    assert any("'parallel_tool_calls' beside the messages in 'input' is not used" in line for line in notes.lines)


def test_geminis_contents(tmp_path: Path) -> None:
    row = {
        "systemInstruction": {"role": "system", "parts": [{"text": "Be brief."}]},
        "contents": [
            {"role": "user", "parts": [{"text": "What"}, {"text": "is it?"}]},
            {"role": "model", "parts": [{"functionCall": {"name": "look", "args": {"at": 3}}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "look", "response": {"is": "a lamp"}}}]},
            {"role": "model", "parts": [{"text": "A lamp."}]},
        ],
    }
    (found,) = examples(tmp_path / "g.jsonl", row)
    assert said(found) == [
        ("system", "Be brief."), ("user", "What\nis it?"), ("assistant", ""), ("tool", '{"is": "a lamp"}'),
        ("assistant", "A lamp."),
    ]  # fmt: skip
    assert found.messages[2]["tool_calls"][0]["function"] == {"name": "look", "arguments": {"at": 3}}


def test_anthropics_calls_and_results(tmp_path: Path) -> None:
    call = {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": 3}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "a lamp"}]}
    messages = [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": [{"type": "text", "text": "Let me see."}, call]},
        {"role": "user", "content": [result, {"type": "text", "text": "Well?"}]},
        {"role": "assistant", "content": "A lamp."},
    ]
    (found,) = examples(tmp_path / "a.jsonl", {"messages": messages})
    assert said(found) == [
        ("user", "What is it?"), ("assistant", "Let me see."), ("tool", "a lamp"),
        ("user", "Well?"), ("assistant", "A lamp."),
    ]  # fmt: skip
    assert found.messages[1]["tool_calls"][0] == {
        "id": "t1", "type": "function", "function": {"name": "look", "arguments": {"at": 3}},
    }  # fmt: skip
    assert found.messages[2]["tool_call_id"] == "t1"


@pytest.mark.parametrize("answer", [
    {"content": None, "refusal": "I cannot."}, {"content": "", "refusal": "I cannot."},
    {"content": [{"type": "refusal", "refusal": "I cannot."}]}, {"content": "I cannot.", "refusal": None},
])  # fmt: skip
def test_refusals_are_answers(answer: dict[str, Any], tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "Do it"}, {"role": "assistant", **answer}]}
    assert examples(tmp_path / "r.jsonl", row)[0].completion == "I cannot."


def test_squads_articles(tmp_path: Path) -> None:
    qas = [
        {"id": "1", "question": "What?", "answers": [{"text": "a lamp", "answer_start": 5}, {"text": "lamp"}]},
        {"id": "2", "question": "Why?", "answers": [], "is_impossible": True},
        {"id": "3", "question": "Where?", "answers": [{"text": "here"}]},
    ]
    path = tmp_path / "squad.json"
    article = {"title": "Lamps", "paragraphs": [{"context": "It is a lamp here.", "qas": qas}]}
    path.write_text(json.dumps({"version": "v2.0", "data": [article, article]}))
    found, rejected, _ = read_examples(DataSettings(path=path), needs_completion=True)
    assert [example.completion for example in found] == ["a lamp", "here"] * 2
    assert found[0].messages[-1]["content"] == "It is a lamp here.\n\nWhat?"
    assert len(rejected) == 2
    path.write_text(json.dumps({"data": [article, {"paragraphs": [{"qas": 3}]}]}))
    with pytest.raises(DataError, match="article 2 is not like SQuAD's"):
        read_examples(DataSettings(path=path), needs_completion=True)
