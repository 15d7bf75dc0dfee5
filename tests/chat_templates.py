"""Chat templates that do what those of real families do: what they change of earlier turns, where they put the system's
text, tools and thoughts, and what they refuse. Written for the tests, in few words."""

from dataclasses import dataclass
from functools import cache

from conftest import byte_tokenizer

from afina.models.tokenizer import Tokenizer, wrap

_CHATML_TURN = "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
_CHATML_ASKS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"

# What the assistant calls, in tags after its text; results in tags, those of one round in one message of the user.
_TAGGED_CALLS = (
    "{% for c in m.tool_calls %}{{ ('' if loop.first and not said else '\\n') + '<tool_call>\\n{\"name\": \"'"
    ' + c.function.name + \'", "arguments": \' + (c.function.arguments if c.function.arguments is string'
    " else c.function.arguments | tojson) + '}\\n</tool_call>' }}{% endfor %}"
)
_TAGGED_RESULT = (
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}"
)
_TAGGED_TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\\n' + (messages[0].content + '\\n\\n' if messages[0].role == 'system' else"
    " '@DEFAULT@') + '# Tools\\n<tools>' }}{% for t in tools %}{{ '\\n' + (t | tojson) }}{% endfor %}"
    "{{ '\\n</tools><|im_end|>\\n' }}"
    "{% elif messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}"
    "{% else %}{{ '@ELSE@' }}{% endif %}"
)


def _tagged(default: str, thinks: str, asks: str) -> str:
    """ChatML with tools in tags; `thinks` writes an answer's text."""
    otherwise = f"<|im_start|>system\\n{default}<|im_end|>\\n" if default else ""
    head = _TAGGED_TOOLS.replace("@DEFAULT@", f"{default}\\n\\n" if default else "").replace("@ELSE@", otherwise)
    return (
        head + "{% set last = namespace(asked=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set last.asked = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}"
        "{% if m.role == 'assistant' %}"
        + thinks
        + _TAGGED_CALLS.join(("{% if m.tool_calls %}", "{% endif %}"))
        + "{{ '<|im_end|>\\n' }}"
        "{% elif m.role == 'tool' %}"
        + _TAGGED_RESULT
        + "{% elif not (loop.first and m.role == 'system') %}"
        + _CHATML_TURN
        + "{% endif %}{% endfor %}"
        + asks
    )


# The text between the tags, or the key, is the thought; only after the last question it is written.
_THOUGHT_APART = (
    "{% set said = m.content or '' %}{% set thought = '' %}"
    "{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}"
    "{% elif '</think>' in said %}{% set thought = said.split('</think>')[0].rstrip('\\n').split('<think>')[-1]"
    ".lstrip('\\n') %}{% set said = said.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
    "{{ '<|im_start|>assistant\\n' }}"
    "{% if loop.index0 > last.asked and (loop.last or thought) %}"
    "{{ '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + said.lstrip('\\n') }}"
    "{% else %}{{ said }}{% endif %}"
)
_TEXT_ALONE = "{% set said = m.content or '' %}{{ '<|im_start|>assistant\\n' + said }}"

_DEEPSEEK_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% elif m.role == 'assistant' and m.tool_calls %}{{ '<｜Assistant｜><｜calls｜>' }}"
    "{% for c in m.tool_calls %}{{ c.function.name + '\\n' + (c.function.arguments | tojson) }}{% endfor %}"
    "{{ '<｜end｜>' }}"
    "{% elif m.role == 'assistant' %}{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end｜>' }}"
    "{% elif m.role == 'tool' %}{{ '<｜result｜>' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)
_MISTRAL_TURNS = (
    "{% if (m.role == 'user') != (ns.n % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}{% set ns.n = ns.n + 1 %}"
)
_MISTRAL_V1 = (
    "{{ bos_token }}{% set ns = namespace(n=0) %}{% for m in messages %}"
    + _MISTRAL_TURNS
    + "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant roles') }}{% endif %}{% endfor %}"
)
# The system's text and the tools stand before the last question, wherever the conversation has got to.
_MISTRAL_V3 = (
    "{% if messages[0].role == 'system' %}{% set told = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}"
    "{{ bos_token }}{% set ns = namespace(n=0) %}"
    "{% for m in rest %}{% if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}"
    + _MISTRAL_TURNS
    + "{% endif %}{% endfor %}"
    "{% set users = rest | selectattr('role', 'equalto', 'user') | list %}"
    "{% for m in rest %}{% if m.role == 'user' %}"
    "{% if tools and m == users[-1] %}{{ '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{% if loop.last and told is defined %}{{ '[INST] ' + told + '\\n\\n' + m.content + '[/INST]' }}"
    "{% else %}{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}"
    "{% elif m.tool_calls %}{{ '[TOOL_CALLS] [' }}{% for c in m.tool_calls %}"
    "{% if c.id is not defined or c.id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}"
    '{{ \'{"name": "\' + c.function.name + \'", "arguments": \' + (c.function.arguments | tojson) + \', "id": "\''
    " + c.id + '\"}' }}{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}{{ ']' + eos_token }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + eos_token }}"
    "{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS] {\"content\": ' + m.content + ', \"call_id\": \"' + m.tool_call_id"
    " + '\"}[/TOOL_RESULTS]' }}"
    "{% else %}{{ raise_exception('only user, assistant and tool roles after the first system message') }}"
    "{% endif %}{% endfor %}"
)
_MISTRAL_V7 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}"
    "{% elif m.role == 'user' %}{{ '[INST]' + m.content + '[/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}"
    "{% else %}{{ raise_exception('only user, system and assistant roles') }}{% endif %}{% endfor %}"
)
_GEMMA_TURNS = (
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + (told if loop.first else '')"
    " + m.content | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
_GEMMA_2 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% set rest = messages %}{% set told = '' %}" + _GEMMA_TURNS
)
_GEMMA_3 = (
    "{{ bos_token }}{% set rest = messages %}{% set told = '' %}{% if messages[0].role == 'system' %}"
    "{% set told = messages[0].content + '\\n\\n' %}{% set rest = messages[1:] %}{% endif %}" + _GEMMA_TURNS
)
# An answer begins with an empty thought where it is asked for, which is left out afterwards, and of calls.
_GEMMA_4 = (
    "{{ bos_token }}{% set rest = messages %}{% set told = '' %}{% if messages[0].role == 'system' %}"
    "{% set told = messages[0].content %}{% set rest = messages[1:] %}{% endif %}"
    "{% if told or tools %}{{ '<|turn>system\\n' + told }}{% for t in tools or [] %}{{ '<|tool>' + (t | tojson) }}"
    "{% endfor %}{{ '<turn|>\\n' }}{% endif %}"
    "{% for m in rest %}{{ '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}"
    "{% for c in m.tool_calls or [] %}{{ '<|tool_call>call:' + c.function.name + (c.function.arguments | tojson)"
    " + '<tool_call|>' }}{% endfor %}{{ m.content | trim + '<turn|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn>model\\n<|channel>thought\\n<channel|>' }}{% endif %}"
)
# Tools stand in the first question; one call at a time; a call is an answer of its own kind, results are 'ipython'.
_LLAMA_31 = (
    "{{ bos_token }}{% set told = '' %}{% set rest = messages %}{% if messages[0].role == 'system' %}"
    "{% set told = messages[0].content | trim %}{% set rest = messages[1:] %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: 26 Jul 2024\\n\\n' + told + '<|eot_id|>' }}"
    "{% if tools %}{% if not rest %}{{ raise_exception('no first user message') }}{% endif %}"
    "{% set first = rest[0].content | trim %}{% set rest = rest[1:] %}"
    "{{ '<|start_header_id|>user<|end_header_id|>\\n\\nRespond with a call in JSON.\\n\\n' }}"
    "{% for t in tools %}{{ (t | tojson(indent=4)) + '\\n\\n' }}{% endfor %}{{ first + '<|eot_id|>' }}{% endif %}"
    "{% for m in rest %}{% if m.tool_calls %}"
    "{% if m.tool_calls | length != 1 %}{{ raise_exception('only single tool-calls at once') }}{% endif %}"
    '{% set c = m.tool_calls[0].function %}{{ \'<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "\''
    " + c.name + '\", \"parameters\": ' + (c.arguments | tojson) + '}<|eot_id|>' }}"
    "{% elif m.role == 'tool' %}{{ '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + (m.content | tojson)"
    " + '<|eot_id|>' }}"
    "{% else %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
_PHI_4 = (
    "{% for m in messages %}{% if m.role in ('system', 'user', 'assistant') %}"
    "{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
# The mode is part of the system's message; thoughts stand in the text of the answers.
_SMOLLM3 = (
    "{% set told = messages[0].content if messages[0].role == 'system' else '' %}{% set plain = '/no_think' in told %}"
    "{{ '<|im_start|>system\\n## Metadata\\nReasoning Mode: ' + ('/no_think' if plain else '/think') + '\\n\\n'"
    " + told.replace('/no_think', '').rstrip() + '\\n' }}"
    "{% if tools %}{{ '### Tools\\n' }}{% for t in tools %}{{ t | string + '\\n' }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    + _CHATML_TURN
    + "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\\n' + ('<think>\\n\\n</think>\\n' if plain else '')"
    " + m.content.lstrip('\\n') + '<|im_end|>\\n' }}"
    "{% elif m.role == 'tool' %}{{ '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' + ('<think>\\n\\n</think>\\n' if plain else '') }}"
    "{% endif %}"
)
# An answer has no end of its own: the next speaker ends it. Thoughts of earlier questions are emptied.
_GLM_45 = (
    "{{ '[gMASK]<sop>' }}{% if tools %}{{ '<|system|>\\n# Tools' }}{% for t in tools %}{{ '\\n' + (t | tojson) }}"
    "{% endfor %}{% endif %}"
    "{% set last = namespace(asked=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set last.asked = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>\\n' + m.content }}"
    "{% elif m.role == 'system' %}{{ '<|system|>\\n' + m.content }}"
    "{% elif m.role == 'assistant' %}{% set said = m.content or '' %}{% set thought = m.reasoning_content or '' %}"
    "{% if '</think>' in said %}{% set thought = said.split('</think>')[0].split('<think>')[-1] %}"
    "{% set said = said.split('</think>')[-1] %}{% endif %}"
    "{{ '<|assistant|>' }}"
    "{% if loop.index0 > last.asked and thought %}{{ '\\n<think>' + thought.strip() + '</think>' }}"
    "{% else %}{{ '\\n<think></think>' }}{% endif %}{% if said.strip() %}{{ '\\n' + said.strip() }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ '\\n<tool_call>' + c.function.name + '\\n' + (c.function.arguments | tojson)"
    " + '\\n</tool_call>' }}{% endfor %}"
    "{% elif m.role == 'tool' %}{{ '<|observation|>\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# Thoughts are a channel of their own, dropped once an answer is given; the last answer ends otherwise than the others.
_HARMONY = (
    "{{ '<|start|>system<|message|>Reasoning: medium<|end|>' }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ '<|start|>developer<|message|>' + m.content + '<|end|>' }}"
    "{% elif m.role == 'user' %}{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}"
    "{% elif loop.last and not add_generation_prompt %}"
    "{% if m.thinking %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}"
    "{% else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """A chat template, the token that ends a text, further special tokens, and what the template has a place for."""

    template: str
    eos: str = "<|im_end|>"
    specials: tuple[str, ...] = ()
    system: bool = True
    tools: bool = False
    thoughts: bool = False


_INST = ("<s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]")
_MORE_INST = ("[/TOOL_RESULTS]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
_TURNS = ("<s>", "<start_of_turn>", "<end_of_turn>")
_BRACKETS = ("<s>", "<|turn>", "<|tool>", "<|tool_call>", "<tool_call|>", "<|channel>", "<channel|>")
_HEADERS = ("<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_GLM = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_CHANNELS = ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>")

FAMILIES = {
    "Qwen3": Family(_tagged("", _THOUGHT_APART, _CHATML_ASKS), tools=True, thoughts=True),
    "Qwen3-2507-Thinking": Family(
        _tagged("", _THOUGHT_APART, _CHATML_ASKS.replace("assistant\\n", "assistant\\n<think>\\n")),
        tools=True, thoughts=True,
    ),
    "Qwen2.5": Family(_tagged("You are a helpful assistant.", _TEXT_ALONE, _CHATML_ASKS), tools=True),
    "Hermes": Family(_tagged("", _TEXT_ALONE, _CHATML_ASKS), tools=True),
    "DeepSeek-R1": Family(
        _DEEPSEEK_R1, "<｜end｜>", ("<s>", "<｜User｜>", "<｜Assistant｜>", "<｜calls｜>", "<｜result｜>"),
        thoughts=True,
    ),
    "Mistral-v1": Family(_MISTRAL_V1, "</s>", (*_INST, *_MORE_INST), system=False),
    "Mistral-v3": Family(_MISTRAL_V3, "</s>", (*_INST, *_MORE_INST), tools=True),
    "Mistral-v7": Family(_MISTRAL_V7, "</s>", (*_INST, *_MORE_INST)),
    "Gemma-2": Family(_GEMMA_2, "<end_of_turn>", _TURNS, system=False),
    "Gemma-3": Family(_GEMMA_3, "<end_of_turn>", _TURNS),
    "Gemma-4": Family(_GEMMA_4, "<turn|>", _BRACKETS, tools=True),
    "Llama-3.1": Family(_LLAMA_31, "<|eot_id|>", _HEADERS, tools=True),
    "Phi-4": Family(_PHI_4, "<|im_end|>", ("<|im_sep|>",)),
    "SmolLM3": Family(_SMOLLM3, tools=False, thoughts=True),
    "GLM-4.5": Family(_GLM_45, "<|endoftext|>", _GLM, tools=True, thoughts=True),
    "gpt-oss": Family(_HARMONY, "<|return|>", _CHANNELS, thoughts=True),
}  # fmt: skip


@cache
def tokenizer(name: str) -> Tokenizer:
    from tokenizers import AddedToken

    family = FAMILIES[name]
    inner = byte_tokenizer(family.template)
    specials = {*family.specials, family.eos}
    inner.add_special_tokens(
        {"additional_special_tokens": [AddedToken(text, special=True) for text in sorted(specials)]}
    )
    inner.bos_token, inner.eos_token = ("<s>" if "<s>" in specials else None), family.eos
    return wrap(inner, [])
