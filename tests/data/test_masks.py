"""Chat templates of many families: what is learned is exactly the assistant's turns, and a prompt begins its row.

The templates are written here after what the families' models are trained with.
"""

import re

import pytest
from conftest import byte_tokenizer

from afina.data.mapping import Example
from afina.data.template import IGNORE_INDEX, prompt_ids, render
from afina.models.tokenizer import Tokenizer, wrap

SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
)
TURNS = {  # {user}, {assistant}: what stands around a turn; {begin}: what asks for an answer
    "chatml": ("<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>\n"),
    "qwen": ("<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>\n"),
    "llama 3": (
        "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>",
    ),
    "mistral": ("[INST] ", " [/INST]", " ", "</s>"),
    "gemma": ("<start_of_turn>user\n", "<end_of_turn>\n", "<start_of_turn>model\n", "<end_of_turn>\n"),
    "phi 3": ("<|user|>\n", "<|end|>\n", "<|assistant|>\n", "<|end|>\n"),
    "zephyr": ("<|user|>\n", "</s>\n", "<|assistant|>\n", "</s>\n"),
    "vicuna": ("USER: ", " ", "ASSISTANT: ", "</s>"),
    "alpaca": ("### Instruction:\n", "\n\n", "### Response:\n", "</s>\n\n"),
    "deepseek": ("<|User|>", "", "<|Assistant|>", "</s>"),
    "olmo": ("<|user|>\n", "\n", "<|assistant|>\n", "</s>\n"),
    "granite": (
        "<|start_of_role|>user<|end_of_role|>", "<|end_of_text|>\n",
        "<|start_of_role|>assistant<|end_of_role|>", "<|end_of_text|>\n",
    ),
    "command-r": ("<|START|><|USER|>", "<|END|>", "<|START|><|CHATBOT|>", "<|END|>"),
}  # fmt: skip
ENDS = {
    "llama 3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "phi 3": "<|end|>",
    "granite": "<|end_of_text|>",
    "command-r": "<|END|>",
}


def template(family: str) -> str:
    user, after, assistant, end = (text.replace("\n", "\\n") for text in TURNS[family])
    begin = "{{ bos_token }}" if family in ("llama 3", "mistral", "gemma", "command-r") else ""
    trimmed = " | trim" if family in ("llama 3", "gemma") else ""
    return (
        f"{begin}{SYSTEM}{{% if system %}}{{{{ system + '\\n\\n' }}}}{{% endif %}}"
        "{% for m in rest %}{% if m['role'] == 'user' %}"
        f"{{{{ '{user}' + (m['content']{trimmed}) + '{after}' }}}}"
        "{% else %}"
        f"{{{{ '{assistant}' + (m['content']{trimmed}) + '{end}' }}}}"
        "{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ '{assistant}' }}}}{{% endif %}}"
    )


def tokenizer(family: str) -> Tokenizer:
    from tokenizers import AddedToken

    inner = byte_tokenizer(template(family))
    texts = {part for text in TURNS[family] for part in re.findall(r"<[^<>]+>", text)} | {"<s>", "</s>"}
    inner.add_special_tokens({"additional_special_tokens": [AddedToken(text, special=True) for text in sorted(texts)]})
    inner.bos_token = "<s>"
    inner.eos_token = ENDS.get(family, "</s>" if "</s>" in TURNS[family][3] else "<|im_end|>")
    return wrap(inner, [])


def example(*turns: tuple[str, str]) -> Example:
    messages = tuple({"role": role, "content": text} for role, text in turns[:-1])
    return Example(messages, turns[-1][1], (turns[-1][1],), "", "here")


CHATS = {
    "one turn": example(("user", "What is 2 + 2?"), ("assistant", "Four.")),
    "system": example(("system", "Be brief."), ("user", "Olá?"), ("assistant", "Oi — tudo bem?")),
    "three turns": example(
        ("user", "a"), ("assistant", "bb"), ("user", "c\n\nc"), ("assistant", "d  d"), ("user", "e"), ("assistant", "f")
    ),
}


@pytest.mark.parametrize("family", TURNS)
@pytest.mark.parametrize("chat", CHATS)
def test_exactly_the_assistants_turns_are_learned(family: str, chat: str) -> None:
    tok, row = tokenizer(family), None
    asked = CHATS[chat]
    (row,) = render(tok, asked)
    learned: list[str] = []
    held: list[int] = []
    for token, label in [*zip(row.input_ids, row.labels, strict=True), (0, IGNORE_INDEX)]:
        if label != IGNORE_INDEX:
            held.append(token)
        elif held:
            learned.append(str(tok.inner.decode(held, skip_special_tokens=False)))
            held = []
    answers = [str(m["content"]) for m in asked.messages if m["role"] == "assistant"] + [asked.completion]
    end = tok.turn_end
    assert end.strip()
    assert [text.strip() for text in learned] == [f"{answer}{end}".strip() for answer in answers]
    prompt = prompt_ids(tok, asked.messages)
    assert row.input_ids[: len(prompt)] == prompt
    whole = tok.chat([*asked.messages, {"role": "assistant", "content": asked.completion}], answer=False)
    shown = str(tok.inner.decode(row.input_ids, skip_special_tokens=False))
    assert whole.startswith((shown, shown.removeprefix("<s>")))
    assert row.input_ids.count(tok.inner.bos_token_id) <= 1
    assert row.labels[-1] in tok.stop_ids
