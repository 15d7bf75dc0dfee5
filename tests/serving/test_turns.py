"""Chat templates as turns, and Ollama's TEMPLATE of them, rendered by Go itself."""

import json
import os
import shutil
import subprocess
from typing import Any

import pytest
from chat_templates import FAMILIES, tokenizer
from conftest import CHATML, byte_tokenizer

from afina.data.conversation import Conversation
from afina.data.mapping import Turn
from afina.models.tokenizer import Tokenizer, wrap
from afina.serving.exporters._turns import NoTurns, turns_of

_PROGRAM = """
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type Message struct{ Role, Content string }

type Case struct {
	Template string
	Messages []*Message
}

func main() {
	var cases []Case
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	out := make([]string, len(cases))
	for i, each := range cases {
		var text strings.Builder
		parsed := template.Must(template.New("").Option("missingkey=zero").Parse(each.Template))
		if err := parsed.Execute(&text, map[string]any{"Messages": each.Messages}); err != nil {
			panic(err)
		}
		out[i] = text.String()
	}
	json.NewEncoder(os.Stdout).Encode(out)
}
"""

REFUSING = {
    "a message is cut": CHATML.replace("m['content']", "m['content'].split(' ')[-1]"),
    "earlier turns go": CHATML.replace("messages %}", "messages[-2:] %}", 1),
    "turns are counted": CHATML.replace("<|im_start|>{{", "{{ loop.index }}<|im_start|>{{"),
}
TEMPLATES = {
    "ChatML": CHATML,
    "braces": CHATML.replace("<|im_start|>{{ m['role'] }}", "<|im_start|>{{ '{{' + m['role'] + '}}' }}"),
    "plain": "{% for m in messages %}{{ m.content }}\n{% endfor %}",
}
CONVERSATIONS = [
    ["user"],
    ["system", "user"],
    ["user", "assistant", "user"],
    ["system", "user", "assistant", "user"],
    ["user", "assistant", "user", "assistant", "user", "assistant", "user"],
]
TEXTS = [
    "Is <b>it</b> 3 & 4?",
    "Two\n\nlines, {{ .Messages }} and {% raw %}",
    "Olá, ça va? 水",
    '{"a": [1, 2]}',
    "a\tb",
]


def conversation(roles: list[str], shift: int = 0) -> list[dict[str, Any]]:
    return [{"role": role, "content": TEXTS[(i + shift) % len(TEXTS)]} for i, role in enumerate(roles)]


def rendered(tok: Tokenizer, messages: list[dict[str, Any]]) -> str:
    return Conversation(tok, [Turn(each, False) for each in messages], (), lambda said: None).prompt()


@pytest.fixture(scope="session")
def go(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that renders (template, messages) pairs by Go's text/template."""
    command = shutil.which("go")
    if command is None:
        pytest.skip("Go is not on this machine, whose text/template Ollama uses")
    folder = tmp_path_factory.mktemp("go")
    (folder / "main.go").write_text(_PROGRAM)
    env = os.environ | {"GOCACHE": str(folder / "cache"), "GO111MODULE": "off", "GOFLAGS": "", "HOME": str(folder)}
    subprocess.run([command, "build", "-o", "render", "main.go"], cwd=folder, env=env, check=True)

    def render(cases: list[tuple[str, list[dict[str, Any]]]]) -> list[str]:
        given = json.dumps([{"Template": template, "Messages": messages} for template, messages in cases])
        done = subprocess.run([folder / "render"], input=given.encode(), capture_output=True, check=True)
        return json.loads(done.stdout)

    return render


def tokenizers() -> dict[str, Tokenizer]:
    own = {name: wrap(byte_tokenizer(template), []) for name, template in TEMPLATES.items()}
    return own | {name: tokenizer(name) for name in FAMILIES}


@pytest.mark.parametrize("name", [*TEMPLATES, *FAMILIES])
def test_the_turns_render_as_the_template_does(name: str) -> None:
    tok = tokenizers()[name] if name in TEMPLATES else tokenizer(name)
    turns = turns_of(tok)
    for number, roles in enumerate(CONVERSATIONS):
        messages = conversation(roles, number)
        assert turns.render(messages) == rendered(tok, messages), roles


def test_go_renders_as_the_template_does(go: Any) -> None:
    """Complaint 37: a template that answers are asked in as in training, of every family, by Ollama's own renderer."""
    cases, expected = [], []
    for name, tok in tokenizers().items():
        template = turns_of(tok).go()
        for number, roles in enumerate(CONVERSATIONS):
            messages = conversation(roles, number)
            cases.append((template, messages))
            expected.append((name, rendered(tok, messages)))
        begun = [*messages, {"role": "assistant", "content": "It i"}]  # which Ollama lets the model go on with
        cases.append((template, begun))
        expected.append((name, turns_of(tok).render(begun)))
    for (name, text), found in zip(expected, go(cases), strict=True):
        assert found == text, name


@pytest.mark.parametrize("name", REFUSING)
def test_a_template_that_is_no_row_of_turns_is_not_guessed_at(name: str) -> None:
    with pytest.raises(NoTurns, match=r"row of turns|drops a message|other turns|something else"):
        turns_of(wrap(byte_tokenizer(REFUSING[name]), []))


def test_a_bos_token_that_the_tokenizer_puts_is_left_out() -> None:
    """Who runs the file puts it, and would have it twice."""
    from tokenizers.processors import TemplateProcessing

    inner = byte_tokenizer("{{ bos_token }}" + CHATML)
    inner.bos_token = "<|endoftext|>"
    without = turns_of(wrap(inner, []))
    assert without.render(conversation(["user"])) == rendered(wrap(inner, []), conversation(["user"]))
    inner.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tok = wrap(inner, [])
    assert tok.bos_id == 0
    for roles in CONVERSATIONS:
        messages = conversation(roles)
        assert "<|endoftext|>" + turns_of(tok).render(messages) == rendered(tok, messages)
    assert "endoftext" not in turns_of(tok).go()
