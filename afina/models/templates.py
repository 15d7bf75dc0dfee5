"""Chat templates for bases that come without one, chosen by the control tokens in the vocabulary; and what a template
has a place for."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError

from afina.core.errors import InputError
from afina.core.files import read_text
from afina.core.limits import TEMPLATE_CHARACTERS

# Where no format is recognised: each text on a line of its own, the answer ended by eos.
PLAIN = (
    "{% for m in messages %}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
)

_BEGIN = "{{ bos_token }}"
_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_LLAMA_3 = (
    _BEGIN + "{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# Gemma has no system role: the system's message begins the first question.
_GEMMA = (
    _BEGIN + "{% set told = namespace(text='') %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set told.text = m['content'] + '\n\n' %}"
    "{% else %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\n' + told.text"
    " + m['content'] + '<end_of_turn>\n' }}"
    "{% set told.text = '' %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_PHI_3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
_FORMATS = (
    ({"<|im_start|>", "<|im_end|>"}, _CHATML),
    ({"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}, _LLAMA_3),
    ({"<start_of_turn>", "<end_of_turn>"}, _GEMMA),
    ({"<|user|>", "<|assistant|>", "<|end|>"}, _PHI_3),
)


def template_for(control_texts: Iterable[str], has_bos: bool) -> str:
    """The template of the chat format that these control tokens belong to; the plain one where none is recognised."""
    controls = set(control_texts)
    template = next((template for tokens, template in _FORMATS if tokens <= controls), PLAIN)
    return template if has_bos else template.removeprefix(_BEGIN)


THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")  # by which templates ask for the thought of an answer
MARK, _OTHER = "Xq7probe", "Xq7other"


@dataclass(frozen=True)
class Abilities:
    """What a chat template has a place for: what it is given shows in what it writes.

    `system` is a message of the system at the beginning, `late_system` one among the others, `tools` their
    descriptions, `calls` what an answer calls, `results` a message of the role 'tool', `thoughts` the marks <think> and
    </think>, `thought_key` a thought that is a key of its own. `empty` is the content of an answer that only calls, for
    some templates want none there."""

    system: bool = True
    late_system: bool = True
    tools: bool = False
    calls: bool = False
    results: bool = True
    thoughts: bool = False
    thought_key: bool = False
    empty: str | None = ""


def abilities(chat: Callable[[list[dict[str, Any]], bool, list[dict[str, Any]]], str], template: str) -> Abilities:
    """Those of `template`. `chat` renders messages with it, up to where an answer begins or to the end, and tools; it
    raises `TemplateError`."""

    def shows(text: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> bool:
        try:
            return text in chat(messages, messages[-1]["role"] != "assistant", tools or [])
        except TemplateError:
            return False

    user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    system = {"role": "system", "content": MARK}
    schema = {"name": MARK, "description": "c", "parameters": {"type": "object", "properties": {}}}
    function = {"type": "function", "function": schema}
    call = {"id": "call12345", "type": "function", "function": {"name": MARK, "arguments": {}}}
    result = {"role": "tool", "content": _OTHER, "tool_call_id": "call12345", "name": MARK}
    calling = [{"role": "assistant", "content": text, "tool_calls": [call]} for text in ("", None)]
    called = next((each for each in calling if shows(MARK, [user, each])), None)
    return Abilities(
        system=shows(MARK, [system, user]),
        late_system=shows(MARK, [user, answer, system, user]),
        tools=shows(MARK, [user], [function]),
        calls=called is not None,
        results=shows(_OTHER, [user, called or answer, result]),
        thoughts="</think>" in template,
        thought_key=shows(MARK, [user, {**answer, **dict.fromkeys(THOUGHT_KEYS, MARK)}]),
        empty=None if called is calling[1] else "",
    )


def read_template(path: Path | None) -> str | None:
    """The chat template in a file. Raises `InputError`."""
    if path is None:
        return None
    try:
        text = read_text(path, 4 * TEMPLATE_CHARACTERS, InputError)
        if not text.strip():
            raise InputError(f"the chat template {path} is empty", "give a file with a Jinja template")
        return text
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(
            f"cannot read the chat template {path}: {reason}", "give a file with a Jinja template"
        ) from error
