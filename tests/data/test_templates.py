"""What is learned under the chat templates of many families is what inference would see: each answer after the prompt
that `apply_chat_template` makes of what came before, as the template continues it."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from chat_templates import FAMILIES, tokenizer
from conftest import write_rows

from afina.data.fitting import Fitter
from afina.data.mapping import Example, read_examples
from afina.data.settings import DataSettings
from afina.data.template import Row, prompt_ids, render
from afina.models.model import IGNORE_INDEX
from afina.models.tokenizer import Tokenizer

SCHEMA = {
    "type": "function",
    "function": {
        "name": "stock",
        "description": "How many are left",
        "parameters": {"type": "object", "properties": {"item": {"type": "string"}}},
    },
}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str, thought: str | None = None, calls: str | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"role": "assistant", "content": text}
    if thought:
        found["reasoning_content"] = thought
    if calls:
        arguments = json.dumps({"item": calls})
        function = {"name": "stock", "arguments": arguments}
        found["tool_calls"] = [{"id": "call00001", "type": "function", "function": function}]
    return found


def result(text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "call00001", "name": "stock", "content": text}


SYSTEM = {"role": "system", "content": "You are the clerk."}
PLAIN = [user("Hello?"), says("Hi, what is it?"), user("A kettle."), says("Row 3."), user("Thanks."), says("Bye!")]
THOUGHTS = [
    user("Hello?"), says("Hi!", "They are new, be kind."), user("A lamp?"), says("Row 4.", "Lamps are in 4."),
]  # fmt: skip
WRITTEN = [
    {**m, "content": f"<think>\n{m['reasoning_content']}\n</think>\n\n{m['content']}"}
    if "reasoning_content" in m
    else m
    for m in THOUGHTS
]
WRITTEN = [{key: value for key, value in m.items() if key != "reasoning_content"} for m in WRITTEN]
TOOLS = [
    user("Is there a kettle?"), says("", calls="kettle"), result('{"left": 2}'), says("Yes, 2 are left."),
    user("And a tent?"), says("", calls="tent"), result('{"left": 0}'), says("No, there is none."),
]  # fmt: skip
BOTH = [
    user("Is there a kettle?"), says("", "I must look.", "kettle"), result('{"left": 2}'), says("Yes.", "Two, so yes."),
    user("Thanks."), says("At your service!", "Be polite."),
]  # fmt: skip
CHATS = {
    "plain": (PLAIN, ()),
    "system": ([SYSTEM, *PLAIN], ()),
    "thoughts": (THOUGHTS, ()),
    "thoughts in the text": (WRITTEN, ()),
    "tools": (TOOLS, (SCHEMA,)),
    "tools and a system message": ([SYSTEM, *TOOLS], (SCHEMA,)),
    "tools and thoughts": (BOTH, (SCHEMA,)),
}


def example(tmp_path: Path, messages: list[dict[str, Any]], tools: tuple[dict[str, Any], ...] = ()) -> Example:
    row = {"messages": messages} | ({"tools": list(tools)} if tools else {})
    path = write_rows(tmp_path / "chat.jsonl", [row])
    ((found,), _, _) = read_examples(DataSettings(path=path), needs_completion=True)
    return found


def text(tok: Tokenizer, ids: list[int]) -> str:
    return str(tok.inner.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def learned(tok: Tokenizer, row: Row) -> list[tuple[str, str]]:
    """Each stretch that is learned, after all that stands before it."""
    found, run = [], []
    for at, (token, label) in enumerate([*zip(row.input_ids, row.labels, strict=True), (0, IGNORE_INDEX)]):
        if label != IGNORE_INDEX:
            run.append(token)
        elif run:
            found.append((text(tok, row.input_ids[: at - len(run)]), text(tok, run)))
            run = []
    return found


def twin(name: str, messages: list[dict[str, Any]], tools: tuple[dict[str, Any], ...]) -> list[tuple[str, str]]:
    """By transformers alone: the prompt of each answer, and the continuation up to and with the end of the turn."""
    inner = tokenizer(name).inner
    if name == "gpt-oss" and messages is WRITTEN:  # it knows a thought by its key alone
        messages = THOUGHTS
    parsed = [
        {**m, "tool_calls": [{**c, "function": c["function"] | {"arguments": json.loads(c["function"]["arguments"])}}
                             for c in m["tool_calls"]]} if m.get("tool_calls") else m
        for m in messages
    ]  # fmt: skip
    if not FAMILIES[name].system and messages[0]["role"] == "system":
        parsed = [user(f"{messages[0]['content']}\n\n{messages[1]['content']}"), *parsed[2:]]
    found = []
    for i, message in enumerate(parsed):
        if message["role"] != "assistant":
            continue
        asked, answered = (
            inner.apply_chat_template(
                turns, tools=list(tools) or None, tokenize=False, add_generation_prompt=len(turns) == i
            )
            for turns in (parsed[:i], parsed[: i + 1])
        )
        found.append((asked, CONTINUED.get(name, after_the_prompt)(asked, answered, message)))
    return found


def after_the_prompt(asked: str, answered: str, message: dict[str, Any]) -> str:
    assert answered.startswith(asked)
    return answered[len(asked) :].removesuffix("\n")


def deepseek_r1(asked: str, answered: str, message: dict[str, Any]) -> str:
    """The prompt opens a thought, which the template leaves out of what was answered."""
    thought, said = message.get("reasoning_content", ""), message["content"]
    if "</think>" in said:
        thought, said = said.removeprefix("<think>\n").split("\n</think>\n\n")
    return f"{thought}\n</think>\n\n{said}<｜end｜>"


def mistral_v3(asked: str, answered: str, message: dict[str, Any]) -> str:
    """The system's text is no longer in the last question once that is answered."""
    return answered[answered.rindex("[/TOOL_RESULTS]" if asked.endswith("[/TOOL_RESULTS]") else "[/INST]") :].split(
        "]", 1
    )[1]


def gemma_4(asked: str, answered: str, message: dict[str, Any]) -> str:
    """The empty thought of the prompt is not kept, whether the answer is text or a call."""
    return answered[answered.rindex("<|turn>model\n") :].removeprefix("<|turn>model\n").removesuffix("\n")


def smollm3(asked: str, answered: str, message: dict[str, Any]) -> str:
    """Thoughts stand in the text."""
    thought = message.get("reasoning_content")
    before = f"<think>\n{thought}\n</think>\n\n" if thought else ""
    return before + after_the_prompt(asked, answered, message)


def glm(asked: str, answered: str, message: dict[str, Any]) -> str:
    """The end of the text ends an answer, for the template puts nothing there."""
    return after_the_prompt(asked, answered, message) + "<|endoftext|>"


CONTINUED = {
    "DeepSeek-R1": deepseek_r1,
    "Mistral-v3": mistral_v3,
    "Gemma-4": gemma_4,
    "SmolLM3": smollm3,
    "GLM-4.5": glm,
}


PLACES = [
    (name, chat)
    for name, family in FAMILIES.items()
    for chat in CHATS
    if (family.tools or "tools" not in chat) and (family.thoughts or "thoughts" not in chat)
]  # the others are told otherwise: see the tests below


@pytest.mark.parametrize(("name", "chat"), PLACES)
def test_what_is_learned_is_what_inference_would_see(name: str, chat: str, tmp_path: Path) -> None:
    (messages, tools), tok = CHATS[chat], tokenizer(name)
    asked = example(tmp_path, messages, tools)
    rows = render(tok, asked)
    found = [pair for row in rows for pair in learned(tok, row)]
    assert found == twin(name, messages, tools)
    for row in rows:
        assert row.labels[-1] in tok.stop_ids
    prompts = [before for before, _ in found]
    grows = all(later.startswith(before + body) for (before, body), later in zip(found, prompts[1:], strict=False))
    assert len(rows) == (1 if grows else len(found))  # together where the text only grows, else one by one
    prompt = prompt_ids(tok, asked.messages, asked.tools)
    assert rows[-1].input_ids[: len(prompt)] == prompt


def odd_message(draw: random.Random) -> dict[str, Any]:
    role = draw.choice(["user", "user", "assistant", "assistant", "system", "tool", "gpt", "function_call", "function"])
    texts = ["hi", "x y", "", None, "<think>t</think>z", "t</think>z", '{"name": "f"}', "a\n\nb", [], ["part"]]
    more: dict[str, list[Any]] = {
        "reasoning_content": ["think", ""],
        "tool_calls": [[{"id": "c", "function": {"name": "f", "arguments": '{"a": 1}'}}], [], [{"name": "g"}], "x"],
        "function_call": [{"name": "f", "arguments": "{}"}],
        "weight": [0, 1, 0.5, "0"],
    }
    extra = {key: draw.choice(values) for key, values in more.items() if draw.random() < 0.15}
    return {draw.choice(["role", "from"]): role, draw.choice(["content", "value"]): draw.choice(texts), **extra}


def test_any_conversation_is_learned_as_it_is_asked_or_rejected(tmp_path: Path) -> None:
    """Whatever the messages: what a row learns ends a turn, its example asks for it, and is rendered the same again."""
    draw = random.Random(0)
    good = {"messages": [user("q"), says("x")]}
    odd = [{"messages": [odd_message(draw) for _ in range(draw.randint(1, 6))], "tools": [SCHEMA] * draw.randint(0, 1)}
           for _ in range(120)]  # fmt: skip
    examples, _, _ = read_examples(
        DataSettings(path=write_rows(tmp_path / "d.jsonl", [good, *odd])), needs_completion=True
    )
    assert len(examples) > 40
    for name, family in FAMILIES.items():
        tok, fitter = tokenizer(name), Fitter(tokenizer(name), 5000, "error")
        rows = fitter.fit(examples)
        assert len(rows) > 20, name
        for row, asked in rows:
            assert row.labels[-1] in tok.stop_ids, family
            assert asked.references[0]
            assert render(tok, asked) == [row], name
            prompt = prompt_ids(tok, asked.messages, asked.tools)
            assert row.input_ids[: len(prompt)] == prompt, name
